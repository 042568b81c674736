#include "step.h"

#include <cxxabi.h>

#include <chrono>
#include <cstdlib>

namespace r1 {

void Program::run() const {
  Pool& threads = pool();
  for (const auto& step : steps_) threads.run(*step);
}

std::map<std::string, double> Program::profile() const {
  std::map<std::string, double> seconds;
  Pool& threads = pool();
  for (const auto& step : steps_) {
    const auto start = std::chrono::steady_clock::now();
    threads.run(*step);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    int status = 0;
    char* name = abi::__cxa_demangle(step->kind().name(), nullptr, nullptr, &status);
    seconds[name == nullptr ? step->kind().name() : name] += taken.count();
    std::free(name);
  }
  return seconds;
}

Program*& recording() {
  thread_local Program* program = nullptr;
  return program;
}

void execute(std::unique_ptr<Step> step) {
  pool().run(*step);
  if (recording() != nullptr) recording()->add(std::move(step));
}

}  // namespace r1
