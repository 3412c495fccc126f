// Momentum-GS consistency of two decodings (section 3.3), forward and backward.
//
// Per slot: mean squared difference of colour, unit quaternion (nearer sign) and size, counted where the student draws
// (alpha > 0) and divided by their number; plus the mean squared difference of alpha over all slots.
// Work unit: a chunk of 4096 slots; sums of the chunks are added in order. Bytes: 88 read forward, 176 moved backward per slot.
// Bound: memory.
#pragma once
#include "../bindings.h"
#include "decoder.h"

namespace sd::SD_ISA {

constexpr int64_t kSlotChunk = 4096;

struct OneSlotLanes {
    Floats scale[3], raw[4], alpha, color[3];
    OneSlotLanes(const sd_slots& s, int64_t i, int n) {
        for (int k = 0; k < 3; ++k) scale[k] = load_strided(s.scales + 3 * i + k, 3, n);
        for (int k = 0; k < 4; ++k) raw[k] = load_strided(s.quats + 4 * i + k, 4, n);
        for (int k = 0; k < 3; ++k) color[k] = load_strided(s.colors + 3 * i + k, 3, n);
        alpha = load_first(s.alphas + i, n);
    }
};

struct SlotDifference {
    UnitQuaternion student_unit, teacher_unit;
    Floats scale[3], quat[4], alpha, color[3], sign;
    Mask kept;
    SlotDifference(const OneSlotLanes& s, const OneSlotLanes& t) : student_unit(s.raw), teacher_unit(t.raw) {
        Floats along = 0.0f;
        for (int k = 0; k < 4; ++k) along = fma(student_unit.q[k], teacher_unit.q[k], along);
        sign = select(along < 0.0f, Floats(-1.0f), Floats(1.0f));
        for (int k = 0; k < 4; ++k) quat[k] = fnma(sign, teacher_unit.q[k], student_unit.q[k]);
        for (int k = 0; k < 3; ++k) scale[k] = s.scale[k] - t.scale[k], color[k] = s.color[k] - t.color[k];
        alpha = s.alpha - t.alpha;
        kept = s.alpha > 0.0f;
    }
    Floats per_slot() const {
        Floats thirds = 0.0f, quarters = 0.0f;
        for (int k = 0; k < 3; ++k) thirds = fma(scale[k], scale[k], fma(color[k], color[k], thirds));
        for (int k = 0; k < 4; ++k) quarters = fma(quat[k], quat[k], quarters);
        return thirds * (1.0f / 3.0f) + quarters * 0.25f;
    }
};

struct ConsistencySums {
    double kept, slots, alphas;
};

inline float consistency_forward(int64_t count, const sd_slots& student, const sd_slots& teacher) {
    Scratch scratch;
    ConsistencySums* partial = scratch.array<ConsistencySums>(0, count / kSlotChunk + 1);
    parallel_chunks(count, kSlotChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        Floats slots = 0.0f, alphas = 0.0f;
        int64_t kept = 0;
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            SlotDifference d(OneSlotLanes(student, i, n), OneSlotLanes(teacher, i, n));
            slots = slots + zero_unless(d.kept, d.per_slot());
            alphas = fma(d.alpha, d.alpha, alphas);
            kept += sd::SD_ISA::count(d.kept);
        }
        partial[chunk] = {static_cast<double>(kept), sum(slots), sum(alphas)};
    });
    ConsistencySums total = {0.0, 0.0, 0.0};
    for (int64_t chunk = 0; chunk * kSlotChunk < count; ++chunk) {
        total.kept += partial[chunk].kept, total.slots += partial[chunk].slots, total.alphas += partial[chunk].alphas;
    }
    return static_cast<float>(total.slots / most(total.kept, 1.0) + total.alphas / most(static_cast<double>(count), 1.0));
}

inline int64_t kept_slots(int64_t count, const float* alphas) {
    Scratch scratch;
    int64_t* partial = scratch.array<int64_t>(0, count / kSlotChunk + 1);
    parallel_chunks(count, kSlotChunk, [&](int64_t begin, int64_t end, int64_t chunk) {
        partial[chunk] = 0;
        for (int64_t i = begin; i < end; ++i) partial[chunk] += alphas[i] > 0.0f;
    });
    int64_t total = 0;
    for (int64_t chunk = 0; chunk * kSlotChunk < count; ++chunk) total += partial[chunk];
    return total;
}

inline void write_slot_gradient(const SlotDifference& d, const UnitQuaternion& unit, Floats sign, Floats quat_sign, Floats by_slot,
                                Floats by_alpha, int64_t i, int n, const sd_slots& out) {
    Floats thirds = sign * by_slot * (2.0f / 3.0f), quat[4], pulled[4];
    for (int k = 0; k < 3; ++k) {
        store_strided(out.scales + 3 * i + k, 3, thirds * d.scale[k], n);
        store_strided(out.colors + 3 * i + k, 3, thirds * d.color[k], n);
    }
    for (int k = 0; k < 4; ++k) quat[k] = quat_sign * by_slot * 0.5f * d.quat[k];
    unit.pull(quat, pulled);
    for (int k = 0; k < 4; ++k) store_strided(out.quats + 4 * i + k, 4, pulled[k], n);
    store_first(out.alphas + i, sign * by_alpha * d.alpha, n);
}

inline void consistency_backward(int64_t count, const sd_slots& student, const sd_slots& teacher, float v_loss,
                                 const sd_slots& v_student, const sd_slots& v_teacher) {
    const Floats per_kept = v_loss / static_cast<float>(most<int64_t>(kept_slots(count, student.alphas), 1));
    const Floats by_alpha = 2.0f * v_loss / static_cast<float>(most<int64_t>(count, 1));
    parallel_chunks(count, kSlotChunk, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i += kLanes) {
            int n = static_cast<int>(least<int64_t>(kLanes, end - i));
            SlotDifference d(OneSlotLanes(student, i, n), OneSlotLanes(teacher, i, n));
            Floats by_slot = zero_unless(d.kept, per_kept);
            write_slot_gradient(d, d.student_unit, 1.0f, 1.0f, by_slot, by_alpha, i, n, v_student);
            if (v_teacher.alphas) write_slot_gradient(d, d.teacher_unit, -1.0f, -d.sign, by_slot, by_alpha, i, n, v_teacher);
        }
    });
}

}  // namespace sd::SD_ISA
