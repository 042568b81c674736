// Measurements of the machine, on all threads of the pool.
#pragma once

#include <cstdint>

namespace r1 {

// Best bytes per second of reading `data`, within `seconds`.
double read_bandwidth(const uint8_t* data, int64_t bytes, double seconds);
// Best operations per second ("int8", "bf16", "fp32"; a multiply-add is two), within `seconds`.
double peak(const char* kind, double seconds);

}  // namespace r1
