// The extension module deepseek_r1.kernels._native: what runs kernels, and one bind_*.cpp per family of them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "paths.h"
#include "probe.h"
#include "step.h"

namespace nb = nanobind;

namespace r1 {

void bind_gradient(nb::module_&);
void bind_grouped(nb::module_&);
void bind_linear(nb::module_&);
void bind_rows(nb::module_&);
void bind_sample(nb::module_&);

}  // namespace r1

NB_MODULE(_native, m) {
  using namespace r1;
  m.doc() = "CPU kernels; kernels/ops.py is the only door to them.";
  m.def("path", [] { return std::string(kernels().name); });
  m.def("choose", [](const std::string& name) { choose(name.c_str()); });
  m.def("threads", [] { return pool().threads(); });
  m.def("set_threads", [](int threads) { set_threads(threads); });
  m.def("read_bandwidth", [](uintptr_t data, int64_t bytes, double seconds) {
    nb::gil_scoped_release free;
    return read_bandwidth(reinterpret_cast<const uint8_t*>(data), bytes, seconds);
  });
  m.def("peak", [](const std::string& kind, double seconds) {
    nb::gil_scoped_release free;
    return peak(kind.c_str(), seconds);
  });

  nb::class_<Program>(m, "Program")
      .def(nb::init<>())
      .def("__len__", &Program::size)
      .def("record",
           [](Program& program, bool on) {
             if (on && recording() != nullptr) throw std::runtime_error("a program is being recorded already");
             recording() = on ? &program : nullptr;
           })
      .def("profile",
           [](const Program& program) {
             nb::gil_scoped_release free;
             return program.profile();
           })
      .def("run", [](const Program& program) {
        nb::gil_scoped_release free;
        program.run();
      });
  bind_linear(m);
  bind_gradient(m);
  bind_grouped(m);
  bind_rows(m);
  bind_sample(m);
}
