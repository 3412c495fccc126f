// Finds out whether processor and system offer AMX tiles with bfloat16 products, and keeps the choice of the process.
#include "matrix.h"

#include <atomic>
#include <string.h>

#include "../bindings.h"

#if defined(SD_WITH_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sd {
namespace {

std::atomic<MatrixPath> path{MatrixPath::kVector};

// CPUID leaf 7: the processor has tiles and bfloat16 products. Linux hands out the 8 KB of tile state only on request, to the
// whole process; the request fails where a thread's signal stack is too small for it, or under another system.
bool amx_works() {
#if defined(SD_WITH_AMX)
    unsigned a, b, c, d;
    constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile)) != (kBf16 | kTile)) return false;
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

}  // namespace

MatrixPath matrix_path() { return path.load(); }

}  // namespace sd

extern "C" {

int32_t sd_set_matrix(const char* name) {
    static const bool amx = sd::amx_works();
    if (!strcmp(name, "vector")) return sd::path = sd::MatrixPath::kVector, 1;
    if (amx && !strcmp(name, "amx")) return sd::path = sd::MatrixPath::kAmx, 1;
    if (amx && !strcmp(name, "amx_bfloat16")) return sd::path = sd::MatrixPath::kAmxPlain, 1;
    return 0;
}

const char* sd_get_matrix(void) {
    constexpr const char* kNames[] = {"vector", "amx", "amx_bfloat16"};
    return kNames[static_cast<int>(sd::matrix_path())];
}
}
