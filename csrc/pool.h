// The thread pool: one parallel loop at a time, chunks claimed as threads get to them.
//
// A thread that has not begun a chunk holds nothing up: where another process takes a core, the others do its share.
// A thread that loses its core within a chunk does: after such a stall the caller goes on alone for a while, for longer
// each time it happens again. Nobody waits by spinning for long, so that torch's own threads (and other processes) find
// the cores free.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <typeinfo>
#include <vector>

namespace r1 {

struct Range {
  int64_t items;  // the loop runs over [0, items)
  int64_t grain;  // items per chunk: a chunk should take 5 microseconds or more
};

// One parallel loop with its arguments. `run` is called from several threads, with ranges that do not overlap.
struct Step {
  virtual ~Step() = default;
  virtual Range range() const = 0;
  virtual void run(int64_t begin, int64_t end) const = 0;
  virtual const std::type_info& kind() const = 0;  // of its arguments: what a profile tells apart
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Runs all of the step, on the calling thread too, and returns when it is done.
  void run(const Step& step);
  int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void work();
  bool help();         // claims chunks of the current loop until none is left; false where there was none
  void await_work();   // returns when there is something to claim, or at the end
  void await_chunks(); // returns when every claimed chunk is done
  bool alone();        // whether the caller had better do without the others for now
  void note_stall(std::chrono::steady_clock::time_point now);

  // (epoch, chunks, next chunk): a claim is one compare-and-swap, which fails if the loop has changed in between.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<uint32_t> waiting_{0};  // the caller sleeps until done_ has reached its count
  alignas(64) std::atomic<uint32_t> bell_{0};
  std::atomic<uint32_t> sleeping_{0};
  std::atomic<bool> ending_{false};
  alignas(64) const Step* step_ = nullptr;
  int64_t items_ = 0;
  int64_t grain_ = 1;
  uint64_t epoch_ = 0;
  std::chrono::steady_clock::time_point alone_until_{};
  std::chrono::steady_clock::duration alone_for_{};
  std::mutex callers_;  // loops of different callers take turns
  std::vector<std::thread> workers_;
};

// The process's pool, made on first use with as many threads as the process may run on.
Pool& pool();
void set_threads(int threads);

}  // namespace r1
