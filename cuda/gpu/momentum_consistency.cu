// How far a student's decoded Gaussians are from its teacher's: L_c of Momentum-GS, section 3.3.
//
//   L = [alpha_s > 0] MSE(colour) + MSE(unit quaternion, up to sign) + MSE(size)  over the n slots the student keeps
//     + MSE(alpha)                                                                over all P slots (n = 0: only this)
//
// Unit    one thread a slot; five sums a block (colour, quaternion, size, alpha, n), added up by column in a fixed
//         order.
// Bytes   88 read a slot forward; 88 read + 88 written backward. Bound: memory.
#include "device.h"
#include "launchers.h"
#include "primitives.h"

namespace scene_distill {
namespace {

constexpr int kThreads = 256;
constexpr int kSums = 5;
enum Sum { kColor, kQuaternion, kSize, kAlpha, kKept };

struct UnitQuaternion {
    float q[4], inverse_norm;
};

__device__ __forceinline__ UnitQuaternion load_unit(const float* q) {
    UnitQuaternion u;
    u.inverse_norm = 1.0f / fmaxf(sqrtf(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), 1e-12f);
    for (int k = 0; k < 4; k++) u.q[k] = q[k] * u.inverse_norm;
    return u;
}

__device__ __forceinline__ float dot4(const float* a, const float* b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

// q and -q are one rotation: compare with the teacher's nearer sign.
__device__ __forceinline__ float nearer_sign(const UnitQuaternion& a, const UnitQuaternion& b) {
    return dot4(a.q, b.q) < 0.0f ? -1.0f : 1.0f;
}

__device__ __forceinline__ float squared_distance(const float* a, const float* b, int size, float sign) {
    float sum = 0.0f;
    for (int k = 0; k < size; k++) sum += (a[k] - sign * b[k]) * (a[k] - sign * b[k]);
    return sum;
}

__global__ void __launch_bounds__(kThreads)
    consistency_kernel(SdSlots student, SdSlots teacher, int count, float* partials) {
    SD_SHARED(BlockSums, shared);
    const int i = blockIdx.x * kThreads + threadIdx.x;
    float sums[kSums] = {};
    if (i < count) {
        const float difference = student.alphas[i] - teacher.alphas[i];
        sums[kAlpha] = difference * difference;
        if (student.alphas[i] > 0.0f) {
            const UnitQuaternion q = load_unit(student.quats + 4 * i), r = load_unit(teacher.quats + 4 * i);
            sums[kColor] = squared_distance(student.colors + 3 * i, teacher.colors + 3 * i, 3, 1.0f);
            sums[kQuaternion] = squared_distance(q.q, r.q, 4, nearer_sign(q, r));
            sums[kSize] = squared_distance(student.scales + 3 * i, teacher.scales + 3 * i, 3, 1.0f);
            sums[kKept] = 1.0f;
        }
    }
    for (int k = 0; k < kSums; k++) {
        const float sum = block_sum(sums[k], shared, threadIdx.x, kThreads);
        if (threadIdx.x == 0) partials[blockIdx.x * kSums + k] = sum;
    }
}

__global__ void consistency_loss_kernel(const float* sums, int count, float* loss) {
    const float kept = fmaxf(sums[kKept], 1.0f);
    *loss = sums[kColor] / (3 * kept) + sums[kQuaternion] / (4 * kept) + sums[kSize] / (3 * kept) +
            sums[kAlpha] / float(count);
}

__device__ __forceinline__ void difference_gradient(const float* student, const float* teacher, float* grad_student,
                                                    float* grad_teacher, int size, float factor) {
    for (int k = 0; k < size; k++) {
        grad_student[k] = factor == 0.0f ? 0.0f : factor * (student[k] - teacher[k]);
        grad_teacher[k] = -grad_student[k];
    }
}

// d(q / |q|) -> d(q): only the part across q remains. The unit quaternions differ by own - sign * other.
__device__ __forceinline__ void quaternion_gradient(const UnitQuaternion& own, const UnitQuaternion& other, float* grad,
                                                    float factor, float sign) {
    const float along = 1.0f - sign * dot4(own.q, other.q);
    for (int k = 0; k < 4; k++) grad[k] = factor * own.inverse_norm * (own.q[k] - sign * other.q[k] - along * own.q[k]);
}

__global__ void __launch_bounds__(kThreads)
    consistency_backward_kernel(SdSlots student, SdSlots teacher, int count, const float* sums, const float* grad_loss,
                                SdSlotGradients grad_student, SdSlotGradients grad_teacher) {
    const int i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;
    const bool kept = student.alphas[i] > 0.0f;
    const float per_value = kept ? 2.0f * *grad_loss / fmaxf(sums[kKept], 1.0f) : 0.0f;
    const UnitQuaternion q = load_unit(student.quats + 4 * i), r = load_unit(teacher.quats + 4 * i);
    difference_gradient(student.colors + 3 * i, teacher.colors + 3 * i, grad_student.colors + 3 * i,
                        grad_teacher.colors + 3 * i, 3, per_value / 3);
    difference_gradient(student.scales + 3 * i, teacher.scales + 3 * i, grad_student.scales + 3 * i,
                        grad_teacher.scales + 3 * i, 3, per_value / 3);
    quaternion_gradient(q, r, grad_student.quats + 4 * i, per_value / 4, nearer_sign(q, r));
    quaternion_gradient(r, q, grad_teacher.quats + 4 * i, per_value / 4, nearer_sign(q, r));
    difference_gradient(student.alphas + i, teacher.alphas + i, grad_student.alphas + i, grad_teacher.alphas + i, 1,
                        2.0f * *grad_loss / float(count));
}

}  // namespace
}  // namespace scene_distill

using namespace scene_distill;

extern "C" int sd_cuda_consistency_blocks(int count) { return ceil_div(count, kThreads); }

extern "C" int sd_cuda_momentum_consistency(const SdSlots* student, const SdSlots* teacher, int count, float* partials,
                                            float* sums, float* loss, void* stream) {
    if (count == 0) {
        if (const int error = fill_bytes(sums, 0, kSums * sizeof(float), stream)) return error;
        return fill_bytes(loss, 0, sizeof(float), stream);
    }
    const int blocks = sd_cuda_consistency_blocks(count);
    SD_LAUNCH(consistency_kernel, dim3(blocks), dim3(kThreads), 0, stream, *student, *teacher, count, partials);
    if (const int error = last_error()) return error;
    if (const int error = sum_columns(partials, blocks, kSums, sums, stream)) return error;
    SD_LAUNCH(consistency_loss_kernel, dim3(1), dim3(1), 0, stream, sums, count, loss);
    return last_error();
}

extern "C" int sd_cuda_momentum_consistency_backward(const SdSlots* student, const SdSlots* teacher, int count,
                                                     const float* sums, const float* grad_loss,
                                                     const SdSlotGradients* grad_student,
                                                     const SdSlotGradients* grad_teacher, void* stream) {
    if (count == 0) return 0;
    SD_LAUNCH(consistency_backward_kernel, dim3(sd_cuda_consistency_blocks(count)), dim3(kThreads), 0, stream, *student,
              *teacher, count, sums, grad_loss, *grad_student, *grad_teacher);
    return last_error();
}
