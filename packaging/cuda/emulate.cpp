// Runs the CUDA kernels of model/src/device/kernels.cu on a processor and compares them with their definitions in double
// precision. Finds wrong indices, missing barriers and broken tails without a card; knows nothing of speed, of a card's
// own functions, or of how the kernels are launched from Rust.
//
//   c++ -std=c++20 -O1 -I . packaging/cuda/emulate.cpp -o FILE && FILE
#include <random>

#include "card.h"

#define __global__
#define __device__ static
#define __shared__ static
using std::size_t;
#include "model/src/device/kernels.cu"

static void launch(card::Place grid, unsigned threads, const std::function<void()> &kernel) {
    card::launch(grid, {threads}, kernel);
}

static std::mt19937 source(1);
static std::vector<float> numbers(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> all(count);
    for (auto &x : all) x = normal(source);
    return all;
}

static int failures = 0;
static void compare(const char *name, const std::vector<float> &found, const std::vector<double> &expected) {
    double worst = 0;
    for (size_t i = 0; i < found.size(); i++) {
        const double error = std::abs(found[i] - expected[i]) / (1 + std::abs(expected[i]));
        worst = error > worst || std::isnan(error) ? error : worst;
    }
    const bool fine = found.size() == expected.size() && worst < 1e-5;
    failures += !fine;
    std::printf("%-40s %s, worst difference %.1e\n", name, fine ? "holds" : "FAILS", worst);
}
static void same(const char *name, const float *a, const float *b, size_t count) {
    bool fine = true;
    for (size_t i = 0; i < count; i++) fine &= a[i] == b[i];
    failures += !fine;
    std::printf("%-40s %s\n", name, fine ? "holds" : "FAILS");
}

static unsigned over(size_t count, unsigned by) { return (count + by - 1) / by; }

static void products() {
    const int rows = 11, in = 77, out = 37;
    const auto x = numbers(rows * in), w = numbers(out * in);
    std::vector<float> many(rows * out, -9), one(rows * out, -9);
    launch({over(out, TEAM * 4), over(rows, 8)}, TEAM * WARP,
           [&] { product_8x4(x.data(), w.data(), many.data(), rows, in, out, 0); });
    std::vector<double> expected(rows * out);
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++)
            for (int i = 0; i < in; i++) expected[r * out + o] += double(x[r * in + i]) * w[o * in + i];
    compare("product of several rows", many, expected);
    for (int r = 0; r < rows; r++)
        launch({over(out, TEAM), 1}, TEAM * WARP,
               [&] { product_1x1(&x[r * in], w.data(), &one[r * out], 1, in, out, 0); });
    same("product row by row, bit for bit", one.data(), many.data(), one.size());
    launch({over(out, TEAM * 4), over(rows, 8)}, TEAM * WARP,
           [&] { product_8x4(x.data(), w.data(), many.data(), rows, in, out, 1); });
    for (auto &x : expected) x *= 2;
    compare("product added to what is there", many, expected);
}

static void rows_alone() {
    const int rows = 3, width = 300, half = 5, heads = 30, positions = 40;
    const auto x = numbers(rows * width), w = numbers(width), turns = numbers(positions * half * 2);
    std::vector<float> y(rows * width);
    std::vector<double> expected(rows * width);
    launch({rows, 1}, TEAM * WARP, [&] { rms_norm(x.data(), w.data(), y.data(), width, 1e-5f); });
    for (int r = 0; r < rows; r++) {
        double square = 0;
        for (int i = 0; i < width; i++) square += double(x[r * width + i]) * x[r * width + i];
        for (int i = 0; i < width; i++)
            expected[r * width + i] = x[r * width + i] / std::sqrt(square / width + 1e-5) * w[i];
    }
    compare("rms norm", y, expected);
    const size_t pairs = rows * width / 2;
    launch({over(pairs, 256), 1}, 256, [&] { rope(x.data(), turns.data(), y.data(), pairs, width, half, 7, -1.0f); });
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < half; i++) {
                const size_t low = r * width + h * 2 * half + i, high = low + half;
                const double c = turns[((7 + r) * half + i) * 2], s = -turns[((7 + r) * half + i) * 2 + 1];
                expected[low] = x[low] * c - x[high] * s, expected[high] = x[high] * c + x[low] * s;
            }
    compare("rope", y, expected);
    const auto up = numbers(rows * width);
    launch({over(up.size(), 256), 1}, 256, [&] { swiglu(x.data(), up.data(), y.data(), up.size()); });
    for (size_t i = 0; i < up.size(); i++) expected[i] = x[i] / (1 + std::exp(-double(x[i]))) * up[i];
    compare("swiglu", y, expected);
}

static void experts() {
    const int rows = 270, experts = 5, shared = 3, rank = 4, width = shared + experts * rank;
    const auto u = numbers(rows * width), logits = numbers(rows * experts);
    std::vector<unsigned long long> taken(rows);
    for (int r = 0; r < rows; r++) taken[r] = 1 + r % 31;
    std::vector<float> gates(rows * experts), h(rows * width);
    std::vector<double> expected(rows * experts), spread_out(rows * width);
    launch({over(rows, 256), 1}, 256, [&] { gate(logits.data(), taken.data(), gates.data(), rows, experts); });
    for (int r = 0; r < rows; r++) {
        double total = 0;
        for (int e = 0; e < experts; e++) {
            expected[r * experts + e] = taken[r] >> e & 1 ? std::exp(double(logits[r * experts + e])) : 0;
            total += expected[r * experts + e];
        }
        for (int e = 0; e < experts; e++) expected[r * experts + e] /= total;
    }
    compare("gate", gates, expected);
    launch({over(h.size(), 256), 1}, 256,
           [&] { spread(u.data(), gates.data(), h.data(), h.size(), width, shared, rank, 0.7f); });
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c++)
            spread_out[r * width + c] =
                0.7 * u[r * width + c] * (c < shared ? 1.0 : gates[r * experts + (c - shared) / rank]);
    compare("spread", h, spread_out);
}

static void attend(int head, int heads, int kv_heads, int queries, int past) {
    const int query_start = 1, key_start = 2, width = heads * head, key_width = kv_heads * head, keys = past + queries;
    const auto q = numbers((query_start + queries) * width);
    const auto k = numbers((key_start + keys) * key_width), v = numbers((key_start + keys) * key_width);
    std::vector<float> y(q.size()), last(q.size());
    std::vector<double> expected(q.size());
    const float scale = 1 / std::sqrt(float(head));
    launch({unsigned(queries), unsigned(heads)}, TEAM * WARP, [&] {
        attention(q.data(), k.data(), v.data(), y.data(), head, heads, kv_heads, query_start, key_start, past, scale);
    });
    for (int i = 0; i < queries; i++)
        for (int h = 0; h < heads; h++) {
            const size_t at = (query_start + i) * width + h * head;
            const size_t from = key_start * key_width + h / (heads / kv_heads) * head;
            std::vector<double> p(past + i + 1);
            double total = 0;
            for (size_t j = 0; j < p.size(); j++) {
                for (int c = 0; c < head; c++) p[j] += double(q[at + c]) * k[from + j * key_width + c];
                total += p[j] = std::exp(p[j] * scale);
            }
            for (size_t j = 0; j < p.size(); j++)
                for (int c = 0; c < head; c++) expected[at + c] += p[j] / total * v[from + j * key_width + c];
        }
    compare("attention", y, expected);
    const int final = query_start + queries - 1;
    launch({1, unsigned(heads)}, TEAM * WARP, [&] {
        attention(q.data(), k.data(), v.data(), last.data(), head, heads, kv_heads, final, key_start, keys - 1, scale);
    });
    same("its last query alone, bit for bit", &last[final * width], &y[final * width], width);
}

int main() {
    products();
    rows_alone();
    experts();
    attend(64, 3, 1, 3, 0);
    attend(40, 4, 2, 2, 300);
    attend(256, 1, 1, 2, 31);
    if (failures) std::printf("%d failed\n", failures);
    return failures ? 1 : 0;
}
