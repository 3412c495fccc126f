// What the address sanitizer must be told: shared memory is a row of objects inside one allocation, and a fiber's stack
// starts afresh although its last functions never returned. Without -fsanitize=address nothing happens.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
inline void forbid(const void* address, size_t bytes) { __asan_poison_memory_region(address, bytes); }
inline void allow(const void* address, size_t bytes) { __asan_unpoison_memory_region(address, bytes); }
#else
constexpr bool kSanitized = false;
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
#endif

}  // namespace simt
