// A canvas as it settles: its tokens, each shaded by how unsure the model is of it, and the picture of all passes.

const LEVELS = 7;

/** Nats of entropy -> shade, 0 (sure) to LEVELS. The root spreads the small values, where most are. */
export const shade = (nats) => Math.min(LEVELS, Math.round(4 * Math.sqrt(Math.max(0, nats))));

/** Draws tokens into an element, one span each. Spans are kept, so that a change of shade is a fade. */
export class Tokens {
  constructor(root) {
    this.root = root;
    this.spans = [];
  }

  draw({ tokens, accepted, entropies }) {
    while (this.spans.length > tokens.length) this.spans.pop().remove();
    tokens.forEach((text, i) => {
      if (!this.spans[i]) this.root.append((this.spans[i] = document.createElement("span")));
      const look = `e${shade(entropies[i])}${accepted[i] ? "" : " open"}`;
      if (this.spans[i].textContent !== text) this.spans[i].textContent = text;
      if (this.spans[i].className !== look) this.spans[i].className = look;
    });
  }

  clear() {
    this.spans = [];
    this.root.replaceChildren();
  }
}

/** As `Tokens`, in several gaps: each token in its own. */
export class Gaps {
  constructor(roots) {
    this.each = roots.map((root) => new Tokens(root));
  }

  draw({ tokens, accepted, entropies, gaps }) {
    this.each.forEach((own, gap) => {
      const here = (_, i) => !gaps || gaps[i] === gap;
      own.draw({ tokens: tokens.filter(here), accepted: accepted.filter(here), entropies: entropies.filter(here) });
    });
  }

  clear() {
    for (const own of this.each) own.clear();
  }
}

/** Draws all passes: a column each, a row for each position. Fog is what was unsure. */
export function drawHeat(picture, frames, now) {
  const rows = Math.max(8, ...frames.map((frame) => frame.tokens.length));
  const wide = Math.max(1, Math.floor(640 / frames.length));
  const scale = Math.max(1, Math.floor(160 / rows));
  picture.width = frames.length * wide;
  picture.height = rows * scale;
  const pen = picture.getContext("2d");
  const style = getComputedStyle(picture);
  frames.forEach((frame, x) => {
    frame.entropies.forEach((nats, y) => {
      const fog = !frame.accepted[y];
      pen.fillStyle = style.getPropertyValue(fog ? "--fog" : "--settled");
      pen.globalAlpha = (fog ? 0.35 : 0.16) + (0.65 * shade(nats)) / LEVELS;
      pen.fillRect(x * wide, y * scale, Math.max(1, wide - (wide > 3)), Math.max(1, scale - (scale > 2)));
    });
  });
  if (now < frames.length) {
    pen.globalAlpha = 1;
    pen.fillStyle = style.getPropertyValue("--ink");
    pen.fillRect(now * wide, 0, 2, picture.height);
  }
}
