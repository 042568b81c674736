// What the bindings check before a kernel sees an address. Not for path_*.cpp: see rows_impl.h.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace r1 {

constexpr int64_t kMost = int64_t{1} << 40;  // elements of a tensor, and of a stride

inline void check(bool right, const std::string& problem) {
  if (!right) throw std::invalid_argument(problem);
}

// Sizes of a tensor: none negative, and a product that is not absurd.
template <class... Sizes>
void check_sizes(const char* what, Sizes... sizes) {
  int64_t product = 1;
  for (const int64_t size : {static_cast<int64_t>(sizes)...}) {
    check(size >= 0, std::string(what) + ": a size is negative");
    check(size == 0 || product <= kMost / size, std::string(what) + ": sizes are absurd");
    product *= size > 0 ? size : 1;
  }
}

template <class... Strides>
void check_strides(const char* what, Strides... strides) {
  for (const int64_t stride : {static_cast<int64_t>(strides)...})
    check(stride >= 0 && stride <= kMost, std::string(what) + ": a stride is negative or absurd");
}

// Rows that are written by several threads must not share elements.
inline void check_apart(const char* what, int64_t rows, int64_t stride, int64_t width) {
  check(rows <= 1 || stride >= width, std::string(what) + ": rows overlap");
}

// The address of `count` elements.
template <class T>
T* at(const char* what, uintptr_t address, int64_t count = 1) {
  check(address != 0 || count == 0, std::string(what) + ": the address is null");
  return reinterpret_cast<T*>(address);
}

}  // namespace r1
