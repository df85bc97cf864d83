// One file of CUDA kernels as functions of this processor, for driver.cpp to find by name: compiled with
// -DKERNELS='"FILE"'. With -DCANDLE also what candle's kernels take from CUDA's own headers, which a processor's compiler
// knows by other names.
#ifdef CANDLE
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
using std::isnan;
using std::max;
using std::min;
static double normcdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
static float normcdff(float x) { return float(normcdf(x)); }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
#endif
#include "card.h"

#undef __global__
#undef __device__
#undef __shared__
#undef __forceinline__
#define __global__
#define __device__
#define __shared__ static
#define __forceinline__
using std::size_t;
#include KERNELS
