// How a kernel is run: at once on the pool, and into the program that is being recorded, if one is.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pool.h"

namespace r1 {

// Kernels recorded once and run again over the same memory, as often as wanted: what Python costs, it costs once.
class Program {
 public:
  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
  void run() const;
  // Seconds per kind of kernel (the name of its arguments) of one run.
  std::map<std::string, double> profile() const;
  size_t size() const { return steps_.size(); }

 private:
  std::vector<std::unique_ptr<Step>> steps_;
};

// The program that this thread records into, or null.
Program*& recording();

void execute(std::unique_ptr<Step> step);

// A kernel is a function over a range of items (rows, tiles, panels) and its arguments, plain data with pointers:
//   struct Args { ... };  Range range(const Args&);  void kernel(const Args&, int64_t begin, int64_t end);
// `range` is asked at every run, so counts that stand in memory (the number of sequences, say) may change between runs.
template <class Args>
void submit(const Args& args, Range (*range)(const Args&), void (*kernel)(const Args&, int64_t, int64_t)) {
  struct Of final : Step {
    Args args;
    Range (*count)(const Args&);
    void (*kernel)(const Args&, int64_t, int64_t);
    Range range() const override { return count(args); }
    void run(int64_t begin, int64_t end) const override { kernel(args, begin, end); }
    const std::type_info& kind() const override { return typeid(Args); }
  };
  auto step = std::make_unique<Of>();
  step->args = args;
  step->count = range;
  step->kernel = kernel;
  execute(std::move(step));
}

}  // namespace r1
