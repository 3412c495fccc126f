// One Adam step, in place; rows that the view did not see can be left alone, moments included.
//
// Unit    one thread an element; a row is one Gaussian's or anchor's parameters.
// Bytes   28 an element (parameter, two moments read and written, gradient read); 1 a row for the mask. Bound: memory.
// Source  Kingma and Ba 2015, in the form of torch.optim.Adam; visible rows only: Taming 3DGS, gsplat's SelectiveAdam.
#include <cmath>

#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 256;

struct StepSize {
    float learning_rate;        // lr / (1 - beta1^step)
    float inverse_root_second;  // 1 / sqrt(1 - beta2^step)
};

__global__ void __launch_bounds__(kThreads) adam_kernel(SdAdam a, StepSize size) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= a.count) return;
    if (a.visible && !a.visible[i / a.row_size]) return;
    const float g = a.grad[i];
    const float first = a.beta1 * a.exp_avg[i] + (1.0f - a.beta1) * g;
    const float second = a.beta2 * a.exp_avg_sq[i] + (1.0f - a.beta2) * g * g;
    a.exp_avg[i] = first;
    a.exp_avg_sq[i] = second;
    a.param[i] -= size.learning_rate * first / (sqrtf(second) * size.inverse_root_second + a.eps);
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_adam(const SdAdam* adam, void* stream) {
    if (adam->count == 0) return 0;
    const double first = 1.0 - std::pow(double(adam->beta1), adam->step),
                 second = 1.0 - std::pow(double(adam->beta2), adam->step);
    const StepSize size = {float(adam->lr / first), float(1.0 / std::sqrt(second))};
    const dim3 blocks(unsigned((adam->count + kThreads - 1) / kThreads));
    SD_LAUNCH(adam_kernel, blocks, dim3(kThreads), 0, stream, *adam, size);
    return last_error();
}
