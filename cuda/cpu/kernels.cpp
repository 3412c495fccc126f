// The C functions of bindings.h for one ISA; CMakeLists.txt compiles this file once per ISA with SD_ISA set to its name.
#include "../bindings.h"
#include "adam.h"
#include "bandwidth.h"
#include "consistency.h"
#include "decoder.h"
#include "harmonics.h"
#include "issue_rate.h"
#include "matrix_rate.h"
#include "order.h"
#include "project.h"
#include "raster_backward.h"
#include "raster_forward.h"
#include "raster_statistics.h"
#include "raster_wide_backward.h"
#include "rows.h"
#include "ssim.h"
#include "stored_splats.h"

#define SD_JOIN2(name, isa) name##_##isa
#define SD_JOIN(name, isa) SD_JOIN2(name, isa)
#define SD_NAME(name) SD_JOIN(name, SD_ISA)

using namespace sd::SD_ISA;

extern "C" {

int64_t SD_NAME(sd_project_forward)(int64_t count, const float* means, const float* quats, const float* scales,
                                    const float* opacities, const sd_view* view, const sd_limits* limits, float* means2d,
                                    float* conics, float* depths, float* opacities2d, float* extents) {
    return project_forward(count, means, quats, scales, opacities, *view, *limits,
                           {means2d, conics, depths, opacities2d, extents});
}

void SD_NAME(sd_project_backward)(int64_t count, const float* means, const float* quats, const float* scales,
                                  const float* opacities, const sd_view* view, const sd_limits* limits, const float* extents,
                                  const float* v_means2d, const float* v_conics, const float* v_depths,
                                  const float* v_opacities2d, float* v_means, float* v_quats, float* v_scales,
                                  float* v_opacities, float* v_cam_from_world, float* v_intrinsics) {
    project_backward(count, means, quats, scales, opacities, *view, *limits, extents,
                     {v_means2d, v_conics, v_depths, v_opacities2d}, {v_means, v_quats, v_scales, v_opacities},
                     v_cam_from_world, v_intrinsics);
}

int64_t SD_NAME(sd_bin_count)(const sd_screen* screen, const float* depths, const float* extents, int32_t width, int32_t height,
                              const sd_limits* limits, int32_t* tile_offsets, void** state) {
    return bin_count(*screen, depths, extents, width, height, *limits, tile_offsets, state);
}

void SD_NAME(sd_bin_fill)(void* state, int32_t* pair_gaussian) { bin_fill(state, pair_gaussian); }

void SD_NAME(sd_raster_forward)(const sd_screen* screen, const sd_image* frame, const sd_limits* limits, float* image,
                                float* alpha) {
    auto draw = frame->channels >= kWideFrom ? raster_wide_forward : raster_forward;
    draw(*screen, *frame, *limits, image, alpha);
}

void SD_NAME(sd_raster_backward)(const sd_screen* screen, const sd_image* frame, const sd_limits* limits, const float* image,
                                 const float* alpha, const float* v_image, const float* v_alpha, float* v_means2d,
                                 float* v_conics, float* v_opacities2d, float* v_features, float* v_background) {
    auto pull = frame->channels >= kWideFrom ? raster_wide_backward : raster_backward;
    pull(*screen, *frame, *limits, {image, alpha, v_image, v_alpha, __builtin_inff()},
                    {v_means2d, v_conics, v_opacities2d, v_features, nullptr}, v_background);
}

void SD_NAME(sd_raster_backward_probed)(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,
                                        const float* image, const float* alpha, const float* v_image, const float* v_alpha,
                                        float* v_means2d, float* v_conics, float* v_opacities2d, float* v_features,
                                        float* v_background, float gradient_bound, float* v_absolute) {
    auto pull = frame->channels >= kWideFrom ? raster_wide_backward : raster_backward;
    pull(*screen, *frame, *limits, {image, alpha, v_image, v_alpha, gradient_bound},
                    {v_means2d, v_conics, v_opacities2d, v_features, v_absolute}, v_background);
}

int64_t SD_NAME(sd_raster_contributions)(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,
                                         float* weight_sum, float* weight_max, int32_t* pixels) {
    return raster_contributions(*screen, *frame, *limits, {weight_sum, weight_max, pixels});
}

void SD_NAME(sd_raster_median)(const sd_screen* screen, const sd_image* frame, const sd_limits* limits, int32_t* median) {
    raster_median(*screen, *frame, *limits, median);
}

void SD_NAME(sd_harmonics_forward)(const sd_harmonics* harmonics, float* colors) { harmonics_forward(*harmonics, colors); }

void SD_NAME(sd_harmonics_backward)(const sd_harmonics* harmonics, const float* colors, const float* v_colors, float* v_means,
                                    float* v_coefficients, float* v_camera_center) {
    harmonics_backward(*harmonics, colors, v_colors, {v_means, v_coefficients}, v_camera_center);
}

int64_t SD_NAME(sd_splats_forward)(const sd_splats* splats, const sd_view* view, const sd_limits* limits,
                                   const sd_splat_screen* screen) {
    return StoredPass(*splats, *view, *limits).forward(*screen);
}

void SD_NAME(sd_splats_backward)(const sd_splats* splats, const sd_view* view, const sd_limits* limits,
                                 const sd_splat_screen* drawn, const sd_splat_screen* v, const sd_splats_gradient* out) {
    StoredPass(*splats, *view, *limits).backward(*drawn, *v, *out);
}

float SD_NAME(sd_multiply_add_chains)(int64_t items, int64_t rounds) { return multiply_add_chains(items, rounds); }

double SD_NAME(sd_matrix_multiply_adds)(int64_t items, int64_t rounds) { return matrix_multiply_adds(items, rounds); }

float SD_NAME(sd_memory_read)(const float* data, int64_t count) { return memory_read(data, count); }

void SD_NAME(sd_memory_update)(float* data, int64_t count) { memory_update(data, count); }

int32_t SD_NAME(sd_lanes)(void) { return kLanes; }

void SD_NAME(sd_l1_ssim_forward)(const float* image, const float* target, int32_t width, int32_t height, float* l1,
                                 float* ssim, float* ssim_gradient) {
    l1_ssim_forward(image, target, width, height, l1, ssim, ssim_gradient);
}

void SD_NAME(sd_l1_ssim_backward)(const float* image, const float* target, const float* ssim_gradient, int64_t count,
                                  float v_l1, float v_ssim, float* v_image) {
    l1_ssim_backward(image, target, ssim_gradient, count, v_l1, v_ssim, v_image);
}

void SD_NAME(sd_adam)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t rows, int64_t row_size,
                      const uint8_t* visible, float lr, float beta1, float beta2, float eps, int64_t step) {
    adam(param, grad, exp_avg, exp_avg_sq, rows, row_size, visible, AdamStep(lr, beta1, beta2, eps, step));
}

int64_t SD_NAME(sd_take_rows)(const float* source, const sd_rows* rows, float* out) { return take_rows(source, *rows, out); }

int64_t SD_NAME(sd_adam_rows)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, const sd_rows* rows,
                              int64_t grad_stride, float lr, float beta1, float beta2, float eps, int64_t step, int64_t leading,
                              float leading_lr) {
    return adam_rows({{{param, exp_avg, exp_avg_sq}, grad, grad_stride}, *rows, AdamStep(lr, beta1, beta2, eps, step),
                      AdamStep(leading_lr, beta1, beta2, eps, step), static_cast<float>(leading)});
}

void SD_NAME(sd_decode_forward)(const sd_anchors* anchors, const sd_decoder* decoder, const sd_slots* slots) {
    decode_forward(*anchors, *decoder, *slots);
}

void SD_NAME(sd_decode_backward)(const sd_anchors* anchors, const sd_decoder* decoder, const sd_slots* v_slots,
                                 float* v_positions, float* v_features, float* v_offsets, float* v_log_scales,
                                 const sd_decoder_gradient* v_decoder) {
    decode_backward(*anchors, *decoder, *v_slots, {v_positions, v_features, v_offsets, v_log_scales}, *v_decoder);
}

float SD_NAME(sd_consistency_forward)(int64_t count, const sd_slots* student, const sd_slots* teacher) {
    return consistency_forward(count, *student, *teacher);
}

void SD_NAME(sd_consistency_backward)(int64_t count, const sd_slots* student, const sd_slots* teacher, float v_loss,
                                      const sd_slots* v_student, const sd_slots* v_teacher) {
    consistency_backward(count, *student, *teacher, v_loss, *v_student, *v_teacher);
}
}
