"""Our kernels' bodies in Metal.

Tests compile each as C++ behind a shim and run it thread by thread on the CPU (tests/support/metal_shim.h), so a body
keeps to what that knows: `SHARED` arrays, barriers, sums and maxima over a simdgroup, matrices of 8 by 8. T is the
activations' type. Sums are float32; what MLX's operations would round to T between them is rounded here too.

An array of a thread's own stays in registers only if each index is known when it is compiled: loops over such arrays
have a constant count and are UNROLLed. MLX compiles with safe mathematics, so -INFINITY is what it says.
"""

SHARED = """
#define SHARED threadgroup
#define UNROLL _Pragma("clang loop unroll(full)")
using namespace metal;
"""

# The sum over a threadgroup of `groups` simdgroups; the same in all threads. Ends behind a barrier.
ROW_SUM = """
inline float row_sum(float x, threadgroup float* part, uint lane, uint group, uint groups) {
  x = simd_sum(x);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) part[group] = x;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sum = 0;
  for (uint i = 0; i < groups; i++) sum += part[i];
  return sum;
}
"""

# Norms and RoPE of the heads of one token each, a simdgroup a head: queries, keys, values; transposed to [H, N, D].
HEADS = """
  const uint lane = thread_position_in_grid.x, head = thread_position_in_grid.y, token = thread_position_in_grid.z;
  const uint tokens = threads_per_grid.z;
  const uint kind = head < Q ? 0 : head < Q + G ? 1 : 2;
  const uint heads = kind == 0 ? Q : G, h = kind == 0 ? head : (head - Q) % G;
  const device T* row = (kind == 0 ? queries : kind == 1 ? keys : values) + (token * heads + h) * D;
  device T* out = (kind == 0 ? q : kind == 1 ? k : v) + (h * tokens + token) * D;
  float sum = 0;
  for (uint i = lane; i < D; i += 32) sum += float(row[i]) * float(row[i]);
  const float scale = precise::rsqrt(simd_sum(sum) / D + eps[0]);
  for (uint i = lane, j = lane + D / 2; i < D / 2; i += 32, j += 32) {
    float a = float(T(float(row[i]) * scale)), b = float(T(float(row[j]) * scale));
    if (kind == 2) {
      out[i] = T(a);
      out[j] = T(b);
      continue;
    }
    a = float(T(a * float(kind == 0 ? q_weight[i] : k_weight[i])));
    b = float(T(b * float(kind == 0 ? q_weight[j] : k_weight[j])));
    const float angle = float(positions[token]) * (1.0f / wavelengths[i]);
    const float c = precise::cos(angle), s = precise::sin(angle);
    out[i] = T(a * c - b * s);
    out[j] = T(a * s + b * c);
  }
"""

# A threadgroup a row: x + norm(y) * post, and three norms of it.
RESIDUAL = """
  SHARED float part[32];
  const uint row = threadgroup_position_in_grid.x, tid = thread_position_in_threadgroup.x;
  const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup, groups = THREADS / 32;
  constexpr int EACH = (D + THREADS - 1) / THREADS;
  float kept[EACH], sum = 0;
  for (uint i = tid; i < D; i += THREADS) sum += float(y[row * D + i]) * float(y[row * D + i]);
  float scale = precise::rsqrt(row_sum(sum, part, lane, group, groups) / D + eps[0]);
  sum = 0;
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i >= D) continue;
    const float normed = float(T(float(T(float(y[row * D + i]) * scale)) * float(post[i])));
    const T joined = T(float(x[row * D + i]) + normed);
    residual[row * D + i] = joined;
    kept[n] = float(joined);
    sum += kept[n] * kept[n];
  }
  scale = precise::rsqrt(row_sum(sum, part, lane, group, groups) / D + eps[0]);
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i >= D) continue;
    const float normed = float(T(kept[n] * scale));
    dense[row * D + i] = T(normed * float(dense_weight[i]));
    sparse[row * D + i] = T(normed * float(sparse_weight[i]));
    routing[row * D + i] = T(normed * float(routing_weight[i]));
  }
"""

# A threadgroup a row: the experts' sum, the norms of both halves of the layer and of their sum, the residual, the
# layer's scalar, and the next layer's input norm.
TAIL = """
  SHARED float part[32];
  const uint row = threadgroup_position_in_grid.x, tid = thread_position_in_threadgroup.x;
  const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup, groups = THREADS / 32;
  constexpr int EACH = (D + THREADS - 1) / THREADS;
  float halves[EACH], kept[EACH], first = 0, second = 0;
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i >= D) continue;
    float sum = 0;
    for (uint j = 0; j < K; j++) sum += weights[row * K + j] * float(pairs[(row * K + j) * D + i]);
    kept[n] = float(T(sum));
    halves[n] = float(dense[row * D + i]);
    first += halves[n] * halves[n];
    second += kept[n] * kept[n];
  }
  first = precise::rsqrt(row_sum(first, part, lane, group, groups) / D + eps[0]);
  second = precise::rsqrt(row_sum(second, part, lane, group, groups) / D + eps[0]);
  float sum = 0;
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i >= D) continue;
    const float a = float(T(float(T(halves[n] * first)) * float(dense_weight[i])));
    const float b = float(T(float(T(kept[n] * second)) * float(sparse_weight[i])));
    kept[n] = float(T(a + b));
    sum += kept[n] * kept[n];
  }
  float scale = precise::rsqrt(row_sum(sum, part, lane, group, groups) / D + eps[0]);
  sum = 0;
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i >= D) continue;
    const float normed = float(T(float(T(kept[n] * scale)) * float(post[i])));
    const T joined = T((float(x[row * D + i]) + normed) * float(scalars[MIXED ? row : 0]));
    residual[row * D + i] = joined;
    kept[n] = float(joined);
    sum += kept[n] * kept[n];
  }
  scale = precise::rsqrt(row_sum(sum, part, lane, group, groups) / D + eps[0]);
  UNROLL for (int n = 0; n < EACH; n++) {
    const uint i = n * THREADS + tid;
    if (i < D) normed[row * D + i] = T(float(T(kept[n] * scale)) * float(next_weight[i]));
  }
"""

# One threadgroup: the K likeliest of E experts of each of N tokens, their weights, and all pairs of a token and an
# expert in the order of experts: `order` [N * K] has the pairs, `ends` [E] where each expert's end.
ROUTE = """
  SHARED int counts[E];
  constexpr int EACH = (E + 31) / 32;
  const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup, groups = THREADS / 32;
  const uint tokens = size[0], pairs = tokens * K;
  for (uint token = group; token < tokens; token += groups) {
    float mine[EACH], best = 0, highest = 0;  // lane n keeps the n-th of the likeliest
    int chosen = 0;
    UNROLL for (int i = 0; i < EACH; i++)
      mine[i] = i * 32 + lane < E ? float(scores[token * E + i * 32 + lane]) : -INFINITY;
    for (uint n = 0; n < K; n++) {
      float high = mine[0];
      UNROLL for (int i = 1; i < EACH; i++) high = max(high, mine[i]);
      high = simd_max(high);
      int at = E - 1;
      UNROLL for (int i = EACH - 1; i >= 0; i--)
        if (mine[i] == high) at = min(E - 1, int(i * 32 + lane));
      at = simd_min(at);
      UNROLL for (int i = 0; i < EACH; i++)
        if (int(i * 32 + lane) == at) mine[i] = -INFINITY;
      if (n == 0) highest = high;
      if (n == lane) {
        best = high;
        chosen = at;
      }
    }
    const float share = lane < K ? precise::exp((best - highest) * factor[0]) : 0;
    const float total = simd_sum(share);
    if (lane < K) {
      experts[token * K + lane] = chosen;
      weights[token * K + lane] = share / total * float(scale[chosen]);
    }
  }
  threadgroup_barrier(mem_flags::mem_device);
  for (uint expert = group; expert < E; expert += groups) {
    int count = 0;
    for (uint i = lane; i < pairs; i += 32) count += experts[i] == int(expert);
    count = simd_sum(count);
    if (lane == 0) counts[expert] = count;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint expert = group; expert < E; expert += groups) {
    int before = 0;
    for (uint i = lane; i < expert; i += 32) before += counts[i];
    before = simd_sum(before);
    if (lane == 0) ends[expert] = before + counts[expert];
    for (uint first = 0; first < pairs; first += 32) {
      const int here = first + lane < pairs && experts[first + lane] == int(expert);
      const int place = before + simd_prefix_exclusive_sum(here);
      if (here) order[place] = first + lane;
      before += simd_sum(here);
    }
  }
"""

# How 32 packed weights become values, by MODE: 0 plain, 1 affine, 2 mxfp4, 3 nvfp4, 4 mxfp8. E2M1 and E4M3 are numbers
# of 4 and 8 bits, E8M0 a power of two.
UNPACK = """
inline float e2m1(uint c) {
  const float size = (c & 6) ? float(2 + (c & 1)) * float(1 << ((c >> 1 & 3))) * 0.25f : 0.5f * float(c & 1);
  return c & 8 ? -size : size;
}
inline float e4m3(uint c) {
  const int e = int(c >> 3 & 15);
  const float size = e ? float(8 + (c & 7)) * exp2(float(e - 10)) : float(c & 7) * exp2(-9.0f);
  return c & 128 ? -size : size;
}
inline float e8m0(uint c) { return exp2(float(int(c) - 127)); }
"""

# A tile is 16 rows of one expert by 64 rows of its weights, which two simdgroups share. Tiles begin at experts, so no
# row is multiplied for another's expert, and an empty half of 8 rows is skipped. GATED: half of the columns are gates
# and half are ups, and gelu(gate) * up is stored, row by row as sorted; otherwise a row goes to its pair's place.
EXPERTS = """
  SHARED T ws[64 * 40];
  SHARED T xs[16 * 40];
  SHARED float out[16 * 68];
  const uint tid = thread_position_in_threadgroup.x, lane = thread_index_in_simdgroup;
  const uint half_ = simdgroup_index_in_threadgroup, tile = threadgroup_position_in_grid.y;
  int expert = -1, begin = 0, rows = 0;
  for (int first = 0, tiles = 0; first < E && expert < 0; first += 32) {
    const int e = first + int(lane);
    const int from = e == 0 || e >= E ? 0 : ends[e - 1], count = e < E ? ends[e] - from : 0;
    const int mine = (count + 15) / 16, before = tiles + simd_prefix_exclusive_sum(mine);
    const bool here = int(tile) >= before && int(tile) < before + mine;
    expert = simd_max(here ? e : -1);
    begin = simd_max(here ? from + 16 * (int(tile) - before) : -1);
    rows = simd_max(here ? min(16, count - 16 * (int(tile) - before)) : -1);
    tiles += simd_sum(mine);
  }
  if (expert < 0) return;
  const uint column = threadgroup_position_in_grid.x * (GATED ? 32 : 64);
  const uint wrow = GATED ? (tid / 16 % 2) * M + column + (tid / 32) * 16 + tid % 16 : column + tid;
  const bool inside = GATED ? column + (tid / 32) * 16 + tid % 16 < M : wrow < M;
  const ulong at = ulong(expert) * (GATED ? 2 * M : M) + wrow;
  simdgroup_matrix<float, 8, 8> sums[2][4];
  UNROLL for (int i = 0; i < 2; i++)
    UNROLL for (int j = 0; j < 4; j++) sums[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint depth = 0; depth < D; depth += 32) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = tid; i < 512; i += 64) {
      const uint r = i / 32, c = i % 32;
      const uint source = int(r) >= rows ? 0 : GATED ? uint(order[begin + r]) / K : begin + r;
      xs[r * 40 + c] = int(r) < rows ? x[source * D + depth + c] : T(0);
    }
    const ulong number = at * D + depth;
    if (!inside || MODE == 0) {
      for (uint i = 0; i < 32; i++) ws[tid * 40 + i] = inside ? T(float(weight[number + i])) : T(0);
    } else {
      for (uint i = 0; i < BITS; i++) {  // words of 32 / BITS codes, of one group
        const uint word = uint(weight[number / 32 * BITS + i]);
        const ulong group = (number + i * (32 / BITS)) / GROUP;
        const float power = MODE == 3 ? e4m3(uint(scales[group])) : e8m0(uint(scales[group]));
        const float scale = MODE == 1 ? float(scales[group]) : power;
        const float bias = MODE == 1 ? float(biases[group]) : 0.0f;
        for (uint j = 0; j < 32 / BITS; j++) {
          const uint code = word >> j * BITS & ((1u << BITS) - 1);
          const float value = MODE == 1 ? float(code) : MODE == 4 ? e4m3(code) : e2m1(code);
          ws[tid * 40 + i * (32 / BITS) + j] = T(scale * value + bias);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < 32; k += 8) {
      simdgroup_matrix<T, 8, 8> a, below, b;
      simdgroup_load(a, xs + k, 40);
      if (rows > 8) simdgroup_load(below, xs + 8 * 40 + k, 40);
      UNROLL for (int j = 0; j < 4; j++) {
        simdgroup_load(b, ws + (half_ * 32 + j * 8) * 40 + k, 40, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sums[0][j], a, b, sums[0][j]);
        if (rows > 8) simdgroup_multiply_accumulate(sums[1][j], below, b, sums[1][j]);
      }
    }
  }
  UNROLL for (int i = 0; i < 2; i++)
    UNROLL for (int j = 0; j < 4; j++) simdgroup_store(sums[i][j], out + i * 8 * 68 + half_ * 32 + j * 8, 68);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = tid; i < uint(rows) * 64; i += 64) {
    const uint r = i / 64, c = i % 64;
    if (GATED) {
      if (c % 32 >= 16 || column + c / 32 * 16 + c % 16 >= M) continue;
      const float gate = float(T(out[r * 68 + c])), up = float(T(out[r * 68 + c + 16]));
      const float inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
      y[(begin + r) * M + column + c / 32 * 16 + c % 16] = T(0.5f * gate * (1 + precise::tanh(inner)) * up);
    } else if (column + c < M) {
      y[order[begin + r] * M + column + c] = T(out[r * 68 + c]);
    }
  }
"""

# A threadgroup a position, over a slice of S tokens in blocks of B: see `sweep.Slice` and `sweep.Lists`.
VOCABULARY = """
  SHARED float highs[32];
  SHARED int places[32];
  SHARED float part[32];
  SHARED int nears[32];
  const uint row = threadgroup_position_in_grid.x, tid = thread_position_in_threadgroup.x;
  const uint lane = thread_index_in_simdgroup, group = simdgroup_index_in_threadgroup, groups = THREADS / 32;
  const device T* logits = raw + ulong(row) * S;
  float high = -INFINITY;
  int at = S;
  for (uint i = tid; i < S; i += THREADS)
    if (float(logits[i]) > high) {
      high = float(logits[i]);
      at = i;
    }
  const float highest = simd_max(high);
  at = simd_min(high == highest ? at : int(S));
  if (lane == 0) {
    highs[group] = highest;
    places[group] = at;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  high = highs[0];
  for (uint i = 1; i < groups; i++) high = max(high, highs[i]);
  at = S;
  for (uint i = 0; i < groups; i++)
    if (highs[i] == high) at = min(at, places[i]);
  const float factor = cap[0] / temperature[row], old = top_before[row];
  const float new_top = max(old, high == -INFINITY ? -1e31f : precise::tanh(high / cap[0]) * factor);
  const int slot = heavy[row];
  const uint each = (S / B + groups - 1) / groups, until = min(uint(S / B), (group + 1) * each);
  float heats = 0;
  int near = 0;
  for (uint block = group * each; block < until; block++) {
    float mass = 0;
    for (uint i = block * B + lane; i < (block + 1) * B; i += 32) {
      const float x = float(logits[i]);
      const float below = (x == -INFINITY ? -1e31f : precise::tanh(x / cap[0]) * factor) - new_top;
      const float weight = precise::exp(below);
      mass += weight;
      heats += weight * below;
      near += below >= -reach[0];
      if (slot >= 0) narrow[ulong(slot) * S + i] = T(weight);
    }
    mass = simd_sum(mass);
    if (lane == 0) masses[row * (S / B) + block] = mass;
  }
  const float heat_sum = row_sum(heats, part, lane, group, groups);
  if (tid == 0) {
    top[row] = new_top;
    fade[row] = precise::exp(old - new_top);
    place[row] = min(at, int(S) - 1);
    heat[row] = heat_sum;
  }
  if (!LISTED) return;
  near = simd_sum(near);
  if (lane == 0) nears[group] = near;
  for (uint i = tid; i < KEPT; i += THREADS) {
    tokens[row * KEPT + i] = tokens_before[row * KEPT + i];
    listed[row * KEPT + i] = listed_before[row * KEPT + i];
  }
  threadgroup_barrier(mem_flags::mem_device);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int start = count_before[row];
  int here = start, total = start;
  for (uint i = 0; i < groups; i++) {
    if (i < group) here += nears[i];
    total += nears[i];
  }
  if (tid == 0) count[row] = total;
  if (start >= KEPT || near == 0) return;
  for (uint first = group * each * B; first < until * B; first += 32) {
    const uint i = first + lane;
    const float x = float(logits[i]);
    const float logit = x == -INFINITY ? -1e31f : precise::tanh(x / cap[0]) * factor;
    const int is_near = logit - new_top >= -reach[0];
    const int where = here + simd_prefix_exclusive_sum(is_near);
    if (is_near && where < KEPT) {
      tokens[row * KEPT + where] = int(first_token[0] + i);
      listed[row * KEPT + where] = logit;
    }
    here += simd_sum(is_near);
  }
"""
