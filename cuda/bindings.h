// The one header between Python and the kernels: plain C, plain pointers, float32, row-major contiguous.
//
// Every backend implements the same functions under its own suffix (`sd_project_forward_avx512`, `..._avx2`, `..._portable`);
// scene_distill/renderers/native.py picks a suffix at run time. Shape letters are those of core/conventions.py:
//   N Gaussians   M pairs of (tile, Gaussian)   A anchors   V visible anchors   H, W image   D channels   T tiles
// Pointers named v_x are gradients of the loss with respect to x. A pointer documented "or NULL" may be null.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define SD_EXPORT __declspec(dllexport)
#else
#define SD_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Constants of core/conventions.py, passed explicitly so that Python stays their only home.
typedef struct sd_limits {
    float alpha_min;          // contributions below are skipped
    float alpha_max;          // upper clamp of one contribution
    float transmittance_min;  // a pixel is finished when its next transmittance would be at or below
    float eps2d;              // px^2, added to the diagonal of the projected covariance
    float near_m;             // metres, depths below are culled
    float frustum_margin;     // x/z, y/z used in the Jacobian are clamped to the frustum widened by this part of its size
} sd_limits;

typedef struct sd_view {
    const float* cam_from_world;  // [4, 4]
    const float* intrinsics;      // fx, fy, cx, cy
    int32_t width, height;
    int32_t antialiased;
    int32_t orthographic;  // u = fx x + cx, v = fy y + cy: fx, fy in px per metre
} sd_view;

// Screen-space Gaussians as `project` writes and `bin` and `raster` read them.
typedef struct sd_screen {
    int64_t count;             // N
    const float* means2d;      // [N, 2] px
    const float* conics;       // [N, 3] a, b, c of exp(-(a dx^2 + c dy^2) / 2 - b dx dy)
    const float* opacities2d;  // [N]
} sd_screen;

typedef struct sd_image {
    int32_t width, height, channels;
    const float* features;         // [N, D]
    const float* background;       // [D] or NULL (black)
    const int32_t* tile_offsets;   // [T + 1]
    const int32_t* pair_gaussian;  // [M]
    const uint8_t* mask;           // [H, W] or NULL: pixels with 0 show the background and pull at no Gaussian
} sd_image;

// Spherical harmonics of N Gaussians seen from a point.
typedef struct sd_harmonics {
    int64_t count;               // N
    int32_t bases, degree;       // K coefficients stored, those up to `degree` (0 .. 3) used
    const float* means;          // [N, 3]
    const float* coefficients;   // [N, K, 3]
    const float* camera_center;  // [3]
    const float* extents;        // [N, 2] of the projection: rows that are not drawn are skipped; or NULL
} sd_harmonics;

// Splats as a file stores them.
typedef struct sd_splats {
    int64_t count;                // N
    int32_t bases, degree;        // K coefficients stored, those up to `degree` (0 .. 3) used
    const float* means;           // [N, 3]
    const float* quats;           // [N, 4]
    const float* log_scales;      // [N, 3]
    const float* opacity_logits;  // [N]
    const float* sh;              // [N, K, 3] or NULL: no colours
} sd_splats;

// What they look like on the screen, or the gradients of it.
typedef struct sd_splat_screen {
    float *means2d, *conics, *depths, *opacities2d, *extents, *colors;
} sd_splat_screen;

typedef struct sd_splats_gradient {
    float *means, *quats, *log_scales, *opacity_logits, *sh;
} sd_splats_gradient;

// Chosen rows of arrays [total, size] whose rows lie `stride` floats apart.
typedef struct sd_rows {
    const int64_t* index;  // [count], none twice
    int64_t count, total, size, stride;
} sd_rows;

typedef struct sd_decoder {
    const float* w1[3];  // [32, 35] for opacity, covariance, colour
    const float* b1[3];  // [32]
    const float* w2[3];  // [10 | 70 | 30, 32]
    const float* b2[3];  // [10 | 70 | 30]
} sd_decoder;

typedef struct sd_decoder_gradient {
    float* w1[3];
    float* b1[3];
    float* w2[3];
    float* b2[3];
} sd_decoder_gradient;

typedef struct sd_anchors {
    int64_t rows;                // A, anchors in the arrays below
    int64_t count;               // V, visible anchors
    const int64_t* visible;      // [V] rows
    const float* positions;      // [A, 3]
    const float* features;       // [A, 32]
    const float* offsets;        // [A, 10, 3]
    const float* log_scales;     // [A, 6]
    const float* camera_center;  // [3]
} sd_anchors;

// Decoded slots, V * 10 of them: written by the forward pass, and their gradients (any may be NULL = zero) in the backward.
typedef struct sd_slots {
    float* means;   // [., 3]
    float* scales;  // [., 3]
    float* quats;   // [., 4] unit
    float* alphas;  // [.]
    float* colors;  // [., 3]
} sd_slots;

#define SD_DECLARE_BACKEND(isa)                                                                                              \
    /* Returns the number of Gaussians with a NaN or infinite input (0 = all fine). Culled rows are written as zeros. */    \
    SD_EXPORT int64_t sd_project_forward_##isa(int64_t count, const float* means, const float* quats, const float* scales,  \
                                               const float* opacities, const sd_view* view, const sd_limits* limits,         \
                                               float* means2d, float* conics, float* depths, float* opacities2d,             \
                                               float* extents);                                                              \
    /* v_depths, v_means2d, v_conics, v_opacities2d may be NULL; v_cam_from_world [4,4] and v_intrinsics [4] or NULL. */    \
    SD_EXPORT void sd_project_backward_##isa(int64_t count, const float* means, const float* quats, const float* scales,    \
                                             const float* opacities, const sd_view* view, const sd_limits* limits,           \
                                             const float* extents, const float* v_means2d, const float* v_conics,            \
                                             const float* v_depths, const float* v_opacities2d, float* v_means,              \
                                             float* v_quats, float* v_scales, float* v_opacities, float* v_cam_from_world,   \
                                             float* v_intrinsics);                                                           \
    /* Writes tile_offsets [T+1], returns M and in *state what `sd_bin_fill` needs; `sd_bin_fill` frees the state. */       \
    SD_EXPORT int64_t sd_bin_count_##isa(const sd_screen* screen, const float* depths, const float* extents, int32_t width, \
                                         int32_t height, const sd_limits* limits, int32_t* tile_offsets, void** state);      \
    SD_EXPORT void sd_bin_fill_##isa(void* state, int32_t* pair_gaussian);                                                   \
    SD_EXPORT void sd_raster_forward_##isa(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,         \
                                           float* image, float* alpha);                                                      \
    /* image, alpha: what the forward pass wrote. v_alpha, v_background, v_features or NULL. */                             \
    SD_EXPORT void sd_raster_backward_##isa(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,        \
                                            const float* image, const float* alpha, const float* v_image,                    \
                                            const float* v_alpha, float* v_means2d, float* v_conics, float* v_opacities2d,   \
                                            float* v_features, float* v_background);                                         \
    /* As sd_raster_backward, but no channel of a pixel's v_image exceeds gradient_bound (infinite: no bound) once the */    \
    /* pixel was scaled down, and v_absolute [N, 2] (or NULL) = sum over pixels of |dL/d(means2d)|. */                       \
    SD_EXPORT void sd_raster_backward_probed_##isa(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,  \
                                                   const float* image, const float* alpha, const float* v_image,             \
                                                   const float* v_alpha, float* v_means2d, float* v_conics,                  \
                                                   float* v_opacities2d, float* v_features, float* v_background,             \
                                                   float gradient_bound, float* v_absolute);                                 \
    /* Sum and maximum of each Gaussian's blending weights and the number of pixels it is drawn in, [N] each. Features are */ \
    /* not read. Returns the vector blocks that were evaluated. */                                                           \
    SD_EXPORT int64_t sd_raster_contributions_##isa(const sd_screen* screen, const sd_image* frame, const sd_limits* limits, \
                                                    float* weight_sum, float* weight_max, int32_t* pixels);                  \
    /* median [H, W]: the Gaussian that takes the transmittance to at or below 1/2, or -1. Features are not read. */         \
    SD_EXPORT void sd_raster_median_##isa(const sd_screen* screen, const sd_image* frame, const sd_limits* limits,           \
                                          int32_t* median);                                                                  \
    /* colors [N, 3] = max(0, 1/2 + basis . coefficients); rows that are not drawn are zero. */                              \
    SD_EXPORT void sd_harmonics_forward_##isa(const sd_harmonics* harmonics, float* colors);                                 \
    /* colors: what the forward pass wrote. v_camera_center [3] or NULL. */                                                  \
    SD_EXPORT void sd_harmonics_backward_##isa(const sd_harmonics* harmonics, const float* colors, const float* v_colors,    \
                                               float* v_means, float* v_coefficients, float* v_camera_center);               \
    /* As sd_project_forward and sd_harmonics_forward of the activated splats, in one pass. */                              \
    SD_EXPORT int64_t sd_splats_forward_##isa(const sd_splats* splats, const sd_view* view, const sd_limits* limits,         \
                                              const sd_splat_screen* screen);                                                \
    /* drawn: extents and colors of the forward pass. v: means2d .. opacities2d may be NULL. The camera is a constant. */   \
    SD_EXPORT void sd_splats_backward_##isa(const sd_splats* splats, const sd_view* view, const sd_limits* limits,           \
                                            const sd_splat_screen* drawn, const sd_splat_screen* v,                          \
                                            const sd_splats_gradient* out);                                                  \
    /* items x rounds x 16 independent vector multiply-adds, for timing. */                                                  \
    SD_EXPORT float sd_multiply_add_chains_##isa(int64_t items, int64_t rounds);                                             \
    /* items x rounds dense products of one block on the chosen matrix path, for timing; returns the multiply-adds. */        \
    SD_EXPORT double sd_matrix_multiply_adds_##isa(int64_t items, int64_t rounds);                                          \
    SD_EXPORT float sd_memory_read_##isa(const float* data, int64_t count);   /* for timing */                               \
    SD_EXPORT void sd_memory_update_##isa(float* data, int64_t count); /* halves them; for timing */                         \
    SD_EXPORT int32_t sd_lanes_##isa(void); /* floats in a vector of this build */                                           \
    /* l1 = mean |image - target|, ssim = mean SSIM; ssim_gradient [H, W, 3] or NULL = d(mean SSIM)/d(image). */            \
    SD_EXPORT void sd_l1_ssim_forward_##isa(const float* image, const float* target, int32_t width, int32_t height,         \
                                            float* l1, float* ssim, float* ssim_gradient);                                   \
    /* v_image = v_l1 * sign(image - target) / (3 H W) + v_ssim * ssim_gradient. */                                         \
    SD_EXPORT void sd_l1_ssim_backward_##isa(const float* image, const float* target, const float* ssim_gradient,           \
                                             int64_t count, float v_l1, float v_ssim, float* v_image);                       \
    /* rows x row_size parameters; visible [rows] uint8 or NULL: rows with 0 keep parameter and moments. */                 \
    SD_EXPORT void sd_adam_##isa(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t rows,          \
                                 int64_t row_size, const uint8_t* visible, float lr, float beta1, float beta2, float eps,    \
                                 int64_t step);                                                                              \
    /* out [count, size] = the rows. Returns how many indices are out of range; nothing is written then. */                  \
    SD_EXPORT int64_t sd_take_rows_##isa(const float* source, const sd_rows* rows, float* out);                              \
    /* Adam on the rows of param, exp_avg and exp_avg_sq; grad [count, size], its rows grad_stride apart; the first */      \
    /* `leading` numbers of a row are stepped with leading_lr. Returns what sd_take_rows returns. */                        \
    SD_EXPORT int64_t sd_adam_rows_##isa(float* param, const float* grad, float* exp_avg, float* exp_avg_sq,                 \
                                         const sd_rows* rows, int64_t grad_stride, float lr, float beta1, float beta2,       \
                                         float eps, int64_t step, int64_t leading, float leading_lr);                        \
    SD_EXPORT void sd_decode_forward_##isa(const sd_anchors* anchors, const sd_decoder* decoder, const sd_slots* slots);     \
    /* v_slots: members may be NULL. v_positions .. v_log_scales are zero in the rows of anchors that are not visible. */   \
    SD_EXPORT void sd_decode_backward_##isa(const sd_anchors* anchors, const sd_decoder* decoder, const sd_slots* v_slots,  \
                                            float* v_positions, float* v_features, float* v_offsets, float* v_log_scales,    \
                                            const sd_decoder_gradient* v_decoder);                                           \
    /* means of the slots are not used. */                                                                                   \
    SD_EXPORT float sd_consistency_forward_##isa(int64_t count, const sd_slots* student, const sd_slots* teacher);           \
    /* members of v_teacher NULL: not wanted. */                                                                             \
    SD_EXPORT void sd_consistency_backward_##isa(int64_t count, const sd_slots* student, const sd_slots* teacher,            \
                                                 float v_loss, const sd_slots* v_student, const sd_slots* v_teacher);

SD_DECLARE_BACKEND(avx512)
SD_DECLARE_BACKEND(avx2)
SD_DECLARE_BACKEND(portable)

SD_EXPORT int32_t sd_cpu_supports(const char* isa);  // 1 when this processor runs "avx512", "avx2" or "portable"
SD_EXPORT int32_t sd_set_matrix(const char* name);   // products from 17 channels on: "vector", "amx", "amx_bfloat16"; 0: not here
SD_EXPORT const char* sd_get_matrix(void);
SD_EXPORT void sd_set_threads(int32_t count);        // threads of the kernels, the calling one included
SD_EXPORT int32_t sd_get_threads(void);
SD_EXPORT void sd_release_scratch(void);             // give the kept scratch memory back to the system
SD_EXPORT int32_t sd_keep_freed_memory(void);        // the process's malloc keeps large freed blocks; 0 when it cannot

#ifdef __cplusplus
}
#endif
