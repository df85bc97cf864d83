// A card made of this processor: the functions of CUDA's driver, and of cuBLAS and cuRAND, that the engine calls, with
// memory of the process and kernels that card.h runs. With it, the engine's tests take the way they take on a card, in
// one thread and without its speed. What is not here answers "no device" from the stand-in of the driver; a kernel that
// is not here is named and ends the program.
//
// A kernel's arguments arrive without types; the module's PTX declares them. Numbers and pointers go to a function of the
// x86-64 ABI in one row of registers, floats in another, whatever their order.
#include <cublas_v2.h>
#include <cuda.h>
#include <curand.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <string>

#include "card.h"

namespace {

std::mutex turn;

struct Function {
    void *code = nullptr;
    // 'f' for a float, else the bytes of an integer or a pointer.
    std::vector<char> arguments;
};
struct Module {
    std::string text;
    std::map<std::string, Function> functions;
};
struct Room {
    size_t bytes;
};

[[noreturn]] void give_up(const char *what, const std::string &which) {
    std::fprintf(stderr, "emulated card: %s %s\n", what, which.c_str());
    std::abort();
}

// Sizes of the arguments in `.entry NAME(.param .u64 .ptr .align 1 NAME_param_0, …)`.
std::vector<char> declared(const std::string &text, const std::string &name) {
    size_t at = text.find(".entry " + name + "(");
    if (at == std::string::npos) give_up("no entry in the module:", name);
    const size_t end = text.find(')', at);
    std::vector<char> found;
    for (at = text.find(".param .", at); at < end; at = text.find(".param .", at + 1)) {
        const char kind = text[at + 8];
        const int bits = std::atoi(&text[at + 9]);
        if (kind == 'a') give_up("an argument by value in", name);
        found.push_back(kind == 'f' ? 'f' : char(bits / 8));
        if (kind == 'f' && bits != 32) found.back() = 'd';
    }
    return found;
}

using Called = void (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, double, double, double,
                        double, double, double, double, double);

struct Call {
    Called code;
    uint64_t whole[16] = {};
    double broken[8] = {};

    Call(const Function &function, void **values) : code(reinterpret_cast<Called>(function.code)) {
        size_t wholes = 0, brokens = 0;
        for (size_t i = 0; i < function.arguments.size(); i++) {
            const char kind = function.arguments[i];
            if (kind == 'f' || kind == 'd')
                std::memcpy(&broken[brokens++], values[i], kind == 'f' ? 4 : 8);
            else
                std::memcpy(&whole[wholes++], values[i], kind);
            if (wholes == 16 || brokens == 8) give_up("too many arguments of", "a kernel");
        }
    }
    void operator()() const {
        const uint64_t *w = whole;
        const double *b = broken;
        code(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10], w[11], w[12], w[13], w[14], w[15], b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7]);
    }
};

// Memory behind every buffer that nothing may change.
constexpr size_t FENCE = 64;
constexpr unsigned char POST = 0xFB;
std::map<CUdeviceptr, Room> rooms;

void look_at_fence(CUdeviceptr at, size_t bytes) {
    const auto *fence = reinterpret_cast<unsigned char *>(at) + bytes;
    for (size_t i = 0; i < FENCE; i++)
        if (fence[i] != POST) give_up("a kernel wrote behind its buffer of", std::to_string(bytes) + " bytes");
}

template <typename T>
T *handle(uintptr_t number) {
    return reinterpret_cast<T *>(number);
}

}  // namespace

#define FINE return CUDA_SUCCESS
extern "C" {

CUresult cuInit(unsigned) { FINE; }
CUresult cuDeviceGetCount(int *count) { *count = 1; FINE; }
CUresult cuDeviceGet(CUdevice *device, int) { *device = 0; FINE; }
CUresult cuDeviceGetName(char *name, int room, CUdevice) { std::snprintf(name, room, "emulated card"); FINE; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute, CUdevice) { *value = 0; FINE; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { *context = handle<CUctx_st>(8); FINE; }
CUresult cuDevicePrimaryCtxRelease(CUdevice) { FINE; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = handle<CUctx_st>(8); FINE; }
CUresult cuCtxSetCurrent(CUcontext) { FINE; }
CUresult cuCtxSynchronize(void) { FINE; }
CUresult cuStreamCreate(CUstream *stream, unsigned) { *stream = handle<CUstream_st>(8); FINE; }
CUresult cuStreamDestroy(CUstream) { FINE; }
CUresult cuStreamSynchronize(CUstream) { FINE; }
CUresult cuStreamWaitEvent(CUstream, CUevent, unsigned) { FINE; }
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) { *status = CU_STREAM_CAPTURE_STATUS_NONE; FINE; }
CUresult cuEventCreate(CUevent *event, unsigned) { *event = handle<CUevent_st>(8); FINE; }
CUresult cuEventDestroy(CUevent) { FINE; }
CUresult cuEventRecord(CUevent, CUstream) { FINE; }
CUresult cuEventSynchronize(CUevent) { FINE; }
CUresult cuGetErrorName(CUresult, const char **name) { *name = "emulated"; FINE; }
CUresult cuGetErrorString(CUresult, const char **name) { *name = "emulated"; FINE; }

CUresult cuMemAlloc(CUdeviceptr *at, size_t bytes) {
    auto *room = static_cast<unsigned char *>(std::malloc(bytes + FENCE));
    // Numbers that nobody wrote are NaN.
    std::memset(room, 0xFF, bytes), std::memset(room + bytes, POST, FENCE);
    *at = reinterpret_cast<CUdeviceptr>(room);
    const std::lock_guard<std::mutex> mine(turn);
    rooms[*at] = {bytes};
    FINE;
}
CUresult cuMemFree(CUdeviceptr at) {
    const std::lock_guard<std::mutex> mine(turn);
    const auto room = rooms.find(at);
    if (room == rooms.end()) give_up("memory freed that is", "not there");
    look_at_fence(at, room->second.bytes);
    rooms.erase(room);
    std::free(reinterpret_cast<void *>(at));
    FINE;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream) {
    std::memcpy(reinterpret_cast<void *>(to), from, bytes);
    FINE;
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream) {
    std::memcpy(to, reinterpret_cast<void *>(from), bytes);
    FINE;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    std::memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
    FINE;
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, CUstream) {
    std::memset(reinterpret_cast<void *>(to), byte, bytes);
    FINE;
}

CUresult cuModuleLoadData(CUmodule *module, const void *text) {
    *module = reinterpret_cast<CUmodule>(new Module{static_cast<const char *>(text), {}});
    FINE;
}
CUresult cuModuleUnload(CUmodule module) {
    delete reinterpret_cast<Module *>(module);
    FINE;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule from, const char *name) {
    const std::lock_guard<std::mutex> mine(turn);
    auto &module = *reinterpret_cast<Module *>(from);
    Function &found = module.functions[name];
    if (!found.code) {
        found.code = dlsym(RTLD_DEFAULT, name);
        if (!found.code) give_up("no kernel", name);
        found.arguments = declared(module.text, name);
    }
    *function = reinterpret_cast<CUfunction>(&found);
    FINE;
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned, CUstream, void **values, void **) {
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz == 0 || bx * by * bz > 1024)
        return CUDA_ERROR_INVALID_VALUE;
    const Call call(*reinterpret_cast<Function *>(function), values);
    const std::lock_guard<std::mutex> mine(turn);
    card::launch({gx, gy, gz}, {bx, by, bz}, [&] { call(); });
    FINE;
}

cublasStatus_t cublasCreate(cublasHandle_t *blas) { *blas = handle<cublasContext>(8); return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }

// Columns of f32, one after the other, as BLAS has them.
cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t turn_a, cublasOperation_t turn_b, int m, int n,
                                          int k, const void *alpha, const void *a, cudaDataType type, int stride_a,
                                          long long next_a, const void *b, cudaDataType, int stride_b, long long next_b,
                                          const void *beta, void *c, cudaDataType, int stride_c, long long next_c,
                                          int count, cublasComputeType_t, cublasGemmAlgo_t) {
    if (type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    const float more = *static_cast<const float *>(alpha), less = *static_cast<const float *>(beta);
    for (int batch = 0; batch < count; batch++) {
        const auto *as = static_cast<const float *>(a) + batch * next_a;
        const auto *bs = static_cast<const float *>(b) + batch * next_b;
        auto *cs = static_cast<float *>(c) + batch * next_c;
        for (int column = 0; column < n; column++)
            for (int row = 0; row < m; row++) {
                float sum = 0;
                for (int i = 0; i < k; i++) {
                    const float x = as[turn_a == CUBLAS_OP_N ? row + (size_t)i * stride_a : i + (size_t)row * stride_a];
                    const float y =
                        bs[turn_b == CUBLAS_OP_N ? i + (size_t)column * stride_b : column + (size_t)i * stride_b];
                    sum = std::fma(x, y, sum);
                }
                float &to = cs[row + (size_t)column * stride_c];
                to = more * sum + (less == 0 ? 0 : less * to);
            }
    }
    return CUBLAS_STATUS_SUCCESS;
}

curandStatus_t curandCreateGenerator(curandGenerator_t *made, curandRngType_t) {
    *made = handle<curandGenerator_st>(8);
    return CURAND_STATUS_SUCCESS;
}
curandStatus_t curandDestroyGenerator(curandGenerator_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetStream(curandGenerator_t, cudaStream_t) { return CURAND_STATUS_SUCCESS; }
curandStatus_t curandSetPseudoRandomGeneratorSeed(curandGenerator_t, unsigned long long) {
    return CURAND_STATUS_SUCCESS;
}
}
