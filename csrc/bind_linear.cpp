// Python's door to packed products. Addresses come as integers from kernels/ops.py, which keeps the tensors alive.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "bind.h"
#include "paths.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {
namespace {

Weight make_weight(uintptr_t data, int64_t bytes, int64_t n, int64_t k, const std::string& kind, int group, bool minima,
                   bool wide, bool by_row, int exponent) {
  check(n > 0 && k > 0 && n < kMost / k, "a weight has 1 to 2^40 elements");
  Format f{};
  if (kind == "fp32") f.kind = Kind::fp32;
  else if (kind == "bf16") f.kind = Kind::bf16;
  else if (kind == "int8") f.kind = Kind::int8;
  else if (kind == "int4") f.kind = Kind::int4;
  else throw std::invalid_argument("there is no packed format " + kind);
  const bool coded = f.kind == Kind::int8 || f.kind == Kind::int4;
  check(coded ? group == 32 || group == 128 : group == 0 && !minima && !wide,
        "codes stand in groups of 32 or 128; floats have no groups, minima or wide scales");
  check(!minima || f.kind == Kind::int4, "only 4-bit weights have minima");
  f.group = group;
  f.minima = minima;
  f.wide = wide;
  const bool multiples = f.kind == Kind::int4 && group == 32 && !minima && !wide;
  check(!by_row || (((f.kind == Kind::int8 && group == 128) || multiples) && k <= kMostByRow),
        "only 8-bit weights in groups of 128, and 4-bit ones in groups of 32 without minima, can have a scale by row, of at "
        "most 65536 inputs");
  f.by_row = by_row;
  check(data == 0 || bytes == f.bytes(n, k), "the packed data has another size than its shape and format ask for");
  check(data % kAlign == 0, "packed data must be aligned to 64 bytes");
  check(exponent > -100 && exponent < 100, "the exponent of a weight is absurd");
  return {reinterpret_cast<const uint8_t*>(data), n, k, f, exponent};
}

// Whether a product with this weight can end in a gate.
bool fuses_gate(const Weight& w) {
  return kernels().tiled && w.format.group > 0 && w.n % (2 * kPanel) == 0;
}

void linear(const Weight& w, uintptr_t x, bool x_bf16, int64_t m, int64_t ldx, uintptr_t codes, uintptr_t act,
            uintptr_t bias, uintptr_t out, bool out_bf16, int64_t ldo, int gate) {
  check(gate == kNoGate || ((gate == 0 || gate == 1) && !out_bf16 && fuses_gate(w)),
        "this weight's product has no gate: one of an even number of whole panels in codes, on a path of tiles, has");
  check(m >= 0 && m < kMost / w.k && m < kMost / w.n, "the number of rows is negative or absurd");
  check(m <= 1 || (ldx >= w.k && ldo >= (gate == kNoGate ? w.n : w.n / 2)), "rows overlap: the distance between rows is less than their width");
  check(ldx < kMost && ldo < kMost, "the distance between rows is absurd");
  nb::gil_scoped_release free;
  const Kernels& path = kernels();
  const bool direct = w.format.kind == Kind::fp32;
  check(!direct || !x_bf16, "an fp32 product takes fp32 rows");
  if (!direct) {
    const PrepareArgs prepare{reinterpret_cast<const void*>(x),    x_bf16, m, w.k, ldx, w.format,
                              reads_bf16(w.format, path), path.tiled,
                              reinterpret_cast<void*>(codes), reinterpret_cast<Act*>(act)};
    submit(prepare, prepare_range, path.prepare);
  }
  const LinearArgs args{w,
                        reinterpret_cast<const void*>(direct ? x : codes),
                        m,
                        ldx,
                        reinterpret_cast<const Act*>(act),
                        path.tiled,
                        path.row_tile,
                        reinterpret_cast<const float*>(bias),
                        reinterpret_cast<void*>(out),
                        out_bf16,
                        ldo,
                        gate};
  submit(args, linear_range, path.linear);
}

void pack_rows(const Weight& w, uintptr_t data, int64_t first, int64_t count, uintptr_t values, uintptr_t scales,
               uintptr_t minima, uintptr_t row_scales) {
  check(first >= 0 && count >= 0 && first <= w.n && count <= w.n - first, "these rows are not in the weight");
  check(w.format.group == 0 || (scales != 0 && (minima != 0) == w.format.minima), "scales or minima are missing");
  check((row_scales != 0) == w.format.multiples(), "the rows' own scales are missing, or there are none");
  nb::gil_scoped_release free;
  submit(PackArgs{w, reinterpret_cast<uint8_t*>(data), first, count, reinterpret_cast<const void*>(values),
                  reinterpret_cast<const float*>(scales), reinterpret_cast<const float*>(minima),
                  reinterpret_cast<const float*>(row_scales)},
         pack_range, pack);
}

void unpack_rows(const Weight& w, uintptr_t ids, int64_t m, uintptr_t out, bool out_bf16) {
  check(m >= 0 && m < kMost / w.k, "the number of rows is negative or absurd");
  nb::gil_scoped_release free;
  submit(UnpackArgs{w, reinterpret_cast<const int64_t*>(ids), m, reinterpret_cast<void*>(out), out_bf16}, unpack_range,
         unpack);
}

}  // namespace

void bind_linear(nb::module_& m) {
  nb::class_<Weight>(m, "Weight")
      .def("__init__",
           [](Weight* self, uintptr_t data, int64_t bytes, int64_t n, int64_t k, const std::string& kind, int group,
              bool minima, bool wide,
              bool by_row, int exponent) {
             new (self) Weight(make_weight(data, bytes, n, k, kind, group, minima, wide, by_row, exponent));
           })
      .def_prop_ro("nbytes", [](const Weight& w) { return w.format.bytes(w.n, w.k); })
      .def_prop_ro("fuses_gate", &fuses_gate)
      .def_prop_ro("prepares", [](const Weight& w) { return w.format.kind != Kind::fp32; })
      // What a product of so many rows needs room for: bytes of codes, and floats of their scales and sums.
      .def("room", [](const Weight& w, int64_t rows) {
        check(rows >= 0 && rows < kMost / w.k, "the number of rows is negative or absurd");
        const bool bf16 = reads_bf16(w.format, kernels());
        return std::pair{room_rows(rows) * w.format.padded_k(w.k) * (bf16 ? 2 : 1),
                         w.format.group == 0 ? 0 : 2 * rows * (bf16 ? 2 : w.format.groups(w.k))};
      });
  m.def("linear", &linear);
  m.def("pack_rows", &pack_rows);
  m.def("unpack_rows", &unpack_rows);
}

}  // namespace r1
