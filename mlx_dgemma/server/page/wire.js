// The server's streams: what stays, drafts between, and the end.

export class Refused extends Error {}

function headers() {
  const token = sessionStorage.getItem("token");
  return { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
}

async function checked(reply) {
  if (reply.ok) return reply;
  let message = `${reply.status} ${reply.statusText}`;
  try {
    message = (await reply.json()).error.message;
  } catch {
    // no JSON: the status must do
  }
  const refused = new Refused(message);
  refused.status = reply.status;
  throw refused;
}

export async function get(path) {
  return (await checked(await fetch(path, { headers: headers() }))).json();
}

/** Events of a reply: {draft}, {text, thinking}, and at last {end}, which has reason, usage, warnings and what else the
 * endpoint tells. Throws Refused; an AbortError after `signal`. */
export async function* ask(path, body, signal) {
  const asked = { stream: true, drafts: "tokens", stream_options: { include_usage: true }, ...body };
  const reply = await checked(
    await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(asked), signal }),
  );
  const end = {};
  for await (const chunk of chunks(reply.body)) {
    if (chunk.error) throw new Refused(chunk.error.message);
    if (chunk.usage) end.usage = chunk.usage;
    if (chunk.type === "diffusion_frame") yield { draft: draft(chunk) };
    const [choice] = chunk.choices;
    if (!choice) continue;
    const { content: text, reasoning: thinking } = choice.delta;
    if (text || thinking) yield { text: text ?? "", thinking: thinking ?? "" };
    if (choice.finish_reason) {
      const { warnings = [], gaps, new_text, diff } = chunk;
      Object.assign(end, { reason: choice.finish_reason, warnings, gaps, new_text, diff });
    }
  }
  yield { end };
}

function draft({ block, step, total, text, diffusion }) {
  const { tokens, accepted, entropy, entropy_each: entropies, reasoning, gaps } = diffusion;
  return { block, step, total, text, tokens, accepted, entropy, entropies, reasoning, gaps };
}

async function* chunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}
