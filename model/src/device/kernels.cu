// Forward passes of the operations of model/src/ops on f32 in a card's memory; packed rows, as there.
//
// What a row becomes depends on that row alone: each number is the same sum in the same order whatever the number of
// rows, so nothing here chooses its way by the size of a batch. Threads speak to each other only through WARP-wide
// exchanges and, in `rms_norm` and `attention`, one shared array; packaging/cuda/emulate.cpp runs this file unchanged on
// a processor.

namespace {

constexpr int WARP = 32;
// Warps of a block that works on one row together; MAX_HEAD is also known to mod.rs.
constexpr int TEAM = 8;
constexpr int MAX_HEAD = 256;
constexpr unsigned ALL = 0xffffffffu;

__device__ float sum_of_warp(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}

__device__ float top_of_warp(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}

// Which number an elementwise kernel works on.
__device__ size_t place() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }

// y[rows, out] = x[rows, in] · w[out, in]ᵀ, or added to what is there. A warp makes ROWS × OUTS numbers: lane l sums
// columns l, l + 32, … in order, and the lanes are added as a tree. One block of TEAM warps for TEAM * OUTS outputs.
template <int ROWS, int OUTS>
__device__ void product(const float *x, const float *w, float *y, int rows, int in, int out, int add) {
    const int lane = threadIdx.x % WARP;
    const int first_out = (blockIdx.x * TEAM + threadIdx.x / WARP) * OUTS, first_row = blockIdx.y * ROWS;
    float sums[ROWS][OUTS] = {};
    for (int column = lane; column < in; column += WARP) {
        float weights[OUTS];
        for (int o = 0; o < OUTS; o++)
            weights[o] = first_out + o < out ? w[(size_t)(first_out + o) * in + column] : 0.0f;
        for (int r = 0; r < ROWS; r++) {
            const float here = first_row + r < rows ? x[(size_t)(first_row + r) * in + column] : 0.0f;
            for (int o = 0; o < OUTS; o++) sums[r][o] = fmaf(here, weights[o], sums[r][o]);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        for (int o = 0; o < OUTS; o++) {
            const float sum = sum_of_warp(sums[r][o]);
            if (lane == 0 && first_row + r < rows && first_out + o < out) {
                float *to = y + (size_t)(first_row + r) * out + first_out + o;
                *to = add ? *to + sum : sum;
            }
        }
    }
}

}  // namespace

// One row: as many warps as there are outputs, for the memory's sake.
extern "C" __global__ void product_1x1(const float *x, const float *w, float *y, int rows, int in, int out, int add) {
    product<1, 1>(x, w, y, rows, in, out, add);
}

// Several rows: every weight that was read serves eight of them.
extern "C" __global__ void product_8x4(const float *x, const float *w, float *y, int rows, int in, int out, int add) {
    product<8, 4>(x, w, y, rows, in, out, add);
}

// One block of TEAM warps a row: y = x / sqrt(mean(x²) + eps) · w.
extern "C" __global__ void rms_norm(const float *x, const float *w, float *y, int width, float eps) {
    __shared__ float sums[TEAM];
    const float *row = x + (size_t)blockIdx.x * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += TEAM * WARP) sum = fmaf(row[i], row[i], sum);
    sum = sum_of_warp(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < TEAM; i++) total += sums[i];
    const float factor = 1.0f / sqrtf(total / width + eps);
    for (int i = threadIdx.x; i < width; i += TEAM * WARP) y[(size_t)blockIdx.x * width + i] = row[i] * factor * w[i];
}

// Turns every head of rows whose positions count up from `position`; `turns` has `half` pairs of cosine and sine for
// each position. One thread for a pair of columns; `sign` −1 turns back.
extern "C" __global__ void rope(const float *x, const float *turns, float *y, size_t pairs, int width, int half,
                                int position, float sign) {
    const size_t at = place();
    if (at >= pairs) return;
    const size_t row = at / (width / 2);
    const int pair = at % (width / 2), i = pair % half;
    const size_t low = row * width + (size_t)(pair / half) * 2 * half + i, high = low + half;
    const float *turn = turns + ((position + row) * half + i) * 2;
    const float cosine = turn[0], sine = turn[1] * sign;
    const float x1 = x[low], x2 = x[high];
    y[low] = x1 * cosine - x2 * sine;
    y[high] = x2 * cosine + x1 * sine;
}

// silu(gate) · up.
extern "C" __global__ void swiglu(const float *gate, const float *up, float *y, size_t count) {
    const size_t at = place();
    if (at < count) y[at] = gate[at] / (1.0f + expf(-gate[at])) * up[at];
}

// Multiplies stacked low-rank rows u[rows, shared + experts·rank] by `scale`, and each expert's part also by its gate.
extern "C" __global__ void spread(const float *u, const float *gates, float *h, size_t count, int width, int shared,
                                  int rank, float scale) {
    const size_t at = place();
    if (at >= count) return;
    const size_t row = at / width;
    const int column = at % width, experts = (width - shared) / rank;
    h[at] = u[at] * (column < shared ? scale : scale * gates[row * experts + (column - shared) / rank]);
}

// Gates that sum to one over the experts whose bits are set, and are zero elsewhere. One thread a row.
extern "C" __global__ void gate(const float *logits, const unsigned long long *taken, float *gates, int rows,
                                int experts) {
    const size_t row = place();
    if (row >= (size_t)rows) return;
    const float *from = logits + row * experts;
    float *to = gates + row * experts;
    float top = -INFINITY, total = 0.0f;
    for (int e = 0; e < experts; e++)
        if (taken[row] >> e & 1) top = fmaxf(top, from[e]);
    for (int e = 0; e < experts; e++) {
        to[e] = taken[row] >> e & 1 ? expf(from[e] - top) : 0.0f;
        total += to[e];
    }
    for (int e = 0; e < experts; e++)
        if (taken[row] >> e & 1) to[e] /= total;
}

// softmax(q·kᵀ·scale)·v of one conversation: query `i` of it sees the keys 0..=past + i. One block of TEAM warps for a
// query and a head. Warp t takes the keys 32t.., 32(t + TEAM).., …: each lane scores one key, then all lanes add up the
// values, lane l for columns l, l + 32, …. Each warp keeps its highest score, and the warps are merged at the end.
extern "C" __global__ void attention(const float *q, const float *k, const float *v, float *y, int head, int heads,
                                     int kv_heads, int query_start, int key_start, int past, float scale) {
    __shared__ float tops[TEAM], sums[TEAM], parts[TEAM][MAX_HEAD];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, seen = past + blockIdx.x + 1;
    const size_t stride = (size_t)kv_heads * head;
    const size_t from = (size_t)key_start * stride + (size_t)(blockIdx.y / (heads / kv_heads)) * head;
    const size_t here = ((size_t)(query_start + blockIdx.x) * heads + blockIdx.y) * head;
    q += here, k += from, v += from, y += here;
    float top = -INFINITY, sum = 0.0f, mixed[MAX_HEAD / WARP] = {};
    for (int tile = warp * WARP; tile < seen; tile += TEAM * WARP) {
        const int count = seen - tile < WARP ? seen - tile : WARP;
        float score = -INFINITY;
        if (lane < count) {
            const float *key = k + (tile + lane) * stride;
            score = 0.0f;
            for (int i = 0; i < head; i++) score = fmaf(q[i], key[i], score);
            score *= scale;
        }
        const float higher = fmaxf(top, top_of_warp(score)), shrink = expf(top - higher);
        const float weight = lane < count ? expf(score - higher) : 0.0f;
        sum = sum * shrink + sum_of_warp(weight);
        for (int i = 0; i < MAX_HEAD / WARP; i++) mixed[i] *= shrink;
        for (int j = 0; j < count; j++) {
            const float share = __shfl_sync(ALL, weight, j);
            const float *value = v + (tile + j) * stride;
            for (int i = 0; i < MAX_HEAD / WARP; i++)
                if (lane + i * WARP < head) mixed[i] = fmaf(share, value[lane + i * WARP], mixed[i]);
        }
        top = higher;
    }
    if (lane == 0) tops[warp] = top, sums[warp] = sum;
    for (int i = 0; i < MAX_HEAD / WARP; i++) parts[warp][lane + i * WARP] = mixed[i];
    __syncthreads();
    float highest = -INFINITY, total = 0.0f;
    for (int w = 0; w < TEAM; w++) highest = fmaxf(highest, tops[w]);
    for (int w = 0; w < TEAM; w++) total += sums[w] * expf(tops[w] - highest);
    for (int column = threadIdx.x; column < head; column += TEAM * WARP) {
        float value = 0.0f;
        for (int w = 0; w < TEAM; w++) value += parts[w][column] * expf(tops[w] - highest);
        y[column] = value / total;
    }
}
