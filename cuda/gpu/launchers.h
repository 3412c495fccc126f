// The doors of the CUDA library: plain pointers to device memory (float32 or int32, contiguous), a stream, and an error
// code back (0 = launched). Python mirrors these structs in scene_distill/renderers/cuda.py. Shapes use the letters of
// scene_distill/core/conventions.py; T = tiles, row-major; M = (tile, Gaussian) pairs.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

size_t sd_cuda_scratch_bytes(int count);
const char* sd_cuda_error_string(int code);
int sd_cuda_set_device(int index);

// The constants of scene_distill/core/conventions.py, handed in so that tests can switch the thresholds off.
struct SdLimits {
    float alpha_min, alpha_max, transmittance_min, eps2d_px2, near_m;
    float frustum_margin;  // the Jacobian is taken inside the view widened by this fraction of its half size
};

// ---- project.cu ----
struct SdWorldGaussians {
    const float *means, *quats, *scales, *opacities;  // [N, 3], [N, 4] wxyz, [N, 3], [N]
    const float *cam_from_world, *intrinsics;         // [4, 4], [4] = fx, fy, cx, cy
    int count, width, height, antialiased;
    int orthographic;  // u = fx x + cx, v = fy y + cy: fx, fy in px per metre
    SdLimits limits;
};
// extents: 0 in culled rows, -1 in those of Gaussians with a NaN or infinite number, which sd_cuda_bin_count counts.
struct SdProjected {
    float *means2d, *conics, *depths, *opacities, *extents;  // [N, 2], [N, 3], [N], [N], [N, 2]
};
struct SdProjectedGradients {  // any of the first four may be null: zero
    const float *means2d, *conics, *depths, *opacities;
    const float* extents;  // of the forward: rows that are not positive were culled and get no gradient
};
struct SdWorldGradients {
    float *means, *quats, *scales, *opacities;
    float* camera;    // [16]: rows 0..2 of cam_from_world (12), then fx, fy, cx, cy; null, like partials: not wanted
    float* partials;  // scratch [sd_cuda_project_blocks(N), 16]
};
int sd_cuda_project_blocks(int count);
int sd_cuda_project(const SdWorldGaussians* gaussians, const SdProjected* out, void* stream);
int sd_cuda_project_backward(const SdWorldGaussians* gaussians, const SdProjectedGradients* grads,
                             const SdWorldGradients* out, void* stream);

// ---- bin.cu ----
struct SdBinInputs {
    const float *means2d, *conics, *opacities, *depths, *extents;
    int count, width, height;
    SdLimits limits;
};
struct SdBinOrder {
    uint32_t *keys, *sorted_keys;  // [N] scratch
    int *indices, *order;          // [N] scratch; [N] Gaussians from near to far
    int* tiles;                    // [N + 1] tiles touched, in depth order
    int* offsets;                  // [N + 2] their exclusive sum, offsets[N] = M; behind it the number of extents < 0
    void* scratch;
    size_t scratch_bytes;
};
struct SdBinPairs {
    uint32_t *keys, *sorted_keys;       // [M] scratch: tile of every pair
    int *gaussians, *sorted_gaussians;  // [M] scratch; [M] the result
    int* tile_offsets;                  // [T + 1]
    int count;                          // M
    void* scratch;
    size_t scratch_bytes;
};
int sd_cuda_bin_count(const SdBinInputs* in, const SdBinOrder* order, void* stream);
int sd_cuda_bin_fill(const SdBinInputs* in, const SdBinOrder* order, const SdBinPairs* pairs, void* stream);

// ---- raster.cu, raster_backward.cu, raster_absolute.cu, raster_statistics.cu ----
struct SdRasterInputs {
    const float *means2d, *conics, *opacities, *features, *background;  // [N, 2], [N, 3], [N], [N, D], [D]
    const int *tile_offsets, *pair_gaussian;                            // [T + 1], [M]
    const uint8_t* mask;  // [H, W] or null: pixels with 0 show the background and pull at no Gaussian
    int channels, width, height;
    SdLimits limits;
};
struct SdRasterGradients {
    float *means2d, *conics, *opacities, *features;  // zeroed by the caller; added to
    float* background;                               // [D], overwritten
    float* absolute;  // [N, 2], zeroed by the caller: |dL/d means2d| summed over pixels; null: not wanted, or D is
                      // larger than sd_cuda_raster_slice_channels() and sd_cuda_raster_absolute finds it
};
struct SdPictures {
    const float *image, *alpha;            // what the forward pass drew: [H, W, D], [H, W]
    const float *grad_image, *grad_alpha;  // grad_alpha may be null: zero
};
struct SdRasterScratch {
    float* checkpoints;          // [B, 256, 2], B = sd_cuda_raster_buckets(M, T)
    int* bucket_tile;            // [B]
    float* totals;               // [H, W]
    float* background_partials;  // [T, D]
    int pairs;                   // M
};
struct SdContributions {
    float *weight_sum, *weight_max;  // [N] overwritten; [N] zeroed by the caller
    int* pixels;                     // [N], zeroed by the caller
    long long* sums;                 // scratch [N], zeroed by the caller
};
int sd_cuda_raster_buckets(int pairs, int tiles);
int sd_cuda_raster_slice_channels();
int sd_cuda_raster(const SdRasterInputs* in, float* image, float* alpha, void* stream);
int sd_cuda_raster_backward(const SdRasterInputs* in, const float* grad_image, const float* grad_alpha /* or null */,
                            const SdRasterGradients* out, const SdRasterScratch* scratch, void* stream);

int sd_cuda_raster_absolute(const SdRasterInputs* in, const SdPictures* pictures, float* absolute, void* stream);
// These two read no features and no background.
int sd_cuda_raster_contributions(const SdRasterInputs* in, int count /* N */, const SdContributions* out, void* stream);
int sd_cuda_raster_median(const SdRasterInputs* in, int* median, void* stream);

// ---- pixel_clip.cu ----  grad, out [pixels, channels]; bound > 0
int sd_cuda_clip_pixels(const float* grad, int pixels, int channels, float bound, float* out, void* stream);

// ---- harmonics.cu ----
struct SdHarmonics {
    const float *means, *coefficients, *camera_center;  // [N, 3], [N, K, 3], [3]
    const float* extents;                               // [N, 2]: rows that are 0 are not drawn; null: all are
    int count, bases, degree;                           // N, K = 1, 4, 9 or 16, degree in use
};
struct SdHarmonicsGradients {
    float *means, *coefficients;      // overwritten
    float *camera_center, *partials;  // [3], scratch [sd_cuda_harmonics_blocks(N), 3]; null: not wanted
};
int sd_cuda_harmonics_blocks(int count);
int sd_cuda_spherical_harmonics(const SdHarmonics* harmonics, float* colors, void* stream);
int sd_cuda_spherical_harmonics_backward(const SdHarmonics* harmonics, const float* colors, const float* grad_colors,
                                         const SdHarmonicsGradients* out, void* stream);

// ---- similarity.cu ----  image, target [H, W, 3]
int sd_cuda_similarity_blocks(int width, int height);
struct SdImages {
    const float *image, *target;
    int width, height;
};
struct SdSimilarity {
    float* partials;       // scratch [sd_cuda_similarity_blocks, 2]
    float* means;          // [2]: l1, ssim
    float* maps;           // scratch [9, H, W], or null when no gradient is wanted
    float* ssim_gradient;  // d(ssim) / d(image) [H, W, 3], or null
};
int sd_cuda_l1_ssim(const SdImages* images, const SdSimilarity* out, void* stream);
int sd_cuda_l1_ssim_backward(const SdImages* images, const float* ssim_gradient, const float* grad_l1,
                             const float* grad_ssim, float* grad_image, void* stream);

// ---- adam.cu ----
struct SdAdam {
    float* param;
    const float* grad;
    float *exp_avg, *exp_avg_sq;
    const uint8_t* visible;  // [rows] or null: every row
    long long count;         // elements
    int row_size;            // elements a row
    float lr, beta1, beta2, eps;
    int step;  // 1 for the first step
};
int sd_cuda_adam(const SdAdam* adam, void* stream);

// ---- anchors.cu, anchors_backward.cu ----
struct SdAnchors {
    const float *positions, *features, *offsets, *log_scales;  // [A, 3], [A, 32], [A, 10, 3], [A, 6]
    const long long* visible;                                  // [V], no id twice
    const float* camera_center;                                // [3]
    const float* weights[12];  // opacity, covariance, colour: w1 [32, 35], b1 [32], w2 [out, 32], b2 [out]
    int count;                 // V
};
struct SdDecoded {
    float *means, *scales, *quats, *alphas, *colors;  // [V * 10, 3 | 3 | 4 | 1 | 3]
};
struct SdDecodedGradients {  // any may be null: zero
    const float *means, *scales, *quats, *alphas, *colors;
};
struct SdAnchorGradients {
    float *positions, *features, *offsets, *log_scales;  // zeroed by the caller; rows of visible anchors overwritten
    float* weights;                                      // packed in the order of SdAnchors::weights
    float* partials;                                     // scratch [sd_cuda_decode_blocks(V), sd_cuda_decoder_size()]
};
int sd_cuda_decode_blocks(int count);
int sd_cuda_decoder_size();
int sd_cuda_decode_anchors(const SdAnchors* anchors, const SdDecoded* out, void* stream);
int sd_cuda_decode_anchors_backward(const SdAnchors* anchors, const SdDecodedGradients* grads,
                                    const SdAnchorGradients* out, void* stream);

// ---- momentum_consistency.cu ----
struct SdSlots {
    const float *scales, *quats, *alphas, *colors;  // [P, 3 | 4 | 1 | 3]
};
struct SdSlotGradients {
    float *scales, *quats, *alphas, *colors;
};
int sd_cuda_consistency_blocks(int count);
int sd_cuda_momentum_consistency(const SdSlots* student, const SdSlots* teacher, int count,
                                 float* partials /* [blocks, 5] */, float* sums /* [5] */, float* loss, void* stream);
int sd_cuda_momentum_consistency_backward(const SdSlots* student, const SdSlots* teacher, int count, const float* sums,
                                          const float* grad_loss, const SdSlotGradients* grad_student,
                                          const SdSlotGradients* grad_teacher, void* stream);
}
