#include "pool.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace r1 {
namespace {

constexpr uint64_t kCountBits = 24;
constexpr uint64_t kMask = (uint64_t{1} << kCountBits) - 1;
constexpr auto kSpin = std::chrono::microseconds(60);
// Waiting so long for a chunk means that its thread has lost its core: a chunk takes some hundred microseconds at most.
constexpr auto kStall = std::chrono::microseconds(1500);
constexpr auto kAloneFirst = std::chrono::milliseconds(4);
constexpr auto kAloneMost = std::chrono::milliseconds(256);

uint64_t next_of(uint64_t state) { return state & kMask; }
uint64_t count_of(uint64_t state) { return (state >> kCountBits) & kMask; }

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `ready` or for a while; says which.
template <class Ready>
bool spin(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

#if defined(__linux__)
void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}
int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}
#else
void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) { word.wait(seen); }
void wake(std::atomic<uint32_t>& word) { word.notify_all(); }
int cores() { return std::max(1u, std::thread::hardware_concurrency()); }
#endif

std::mutex g_mutex;
// Never destroyed: threads that are asleep at the end of the process need no goodbye, and a forked child has none.
Pool* g_pool = nullptr;
int g_owner = 0;

int process() {
#if defined(__linux__)
  return static_cast<int>(getpid());
#else
  return 0;
#endif
}

}  // namespace

Pool::Pool(int threads) {
  if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must be 1 to 1024");
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
  ending_.store(true);
  bell_.fetch_add(1);
  wake(bell_);
  for (auto& worker : workers_) worker.join();
}

void Pool::run(const Step& step) {
  const Range range = step.range();
  if (range.items <= 0) return;
  int64_t grain = std::max<int64_t>(1, range.grain);
  if (workers_.empty() || range.items <= grain) return step.run(0, range.items);
  std::lock_guard<std::mutex> turn(callers_);
  if (alone()) return step.run(0, range.items);
  grain = std::max<int64_t>(grain, (range.items + static_cast<int64_t>(kMask) - 1) / static_cast<int64_t>(kMask));
  const uint64_t chunks = static_cast<uint64_t>((range.items + grain - 1) / grain);

  step_ = &step;
  items_ = range.items;
  grain_ = grain;
  done_.store(0, std::memory_order_relaxed);
  waiting_.store(0, std::memory_order_relaxed);
  epoch_ = (epoch_ + 1) & 0xFFFF;
  state_.store((epoch_ << (2 * kCountBits)) | (chunks << kCountBits));  // publishes the loop
  if (sleeping_.load() > 0) {
    bell_.fetch_add(1);
    wake(bell_);
  }
  help();
  await_chunks();
}

bool Pool::help() {
  bool helped = false;
  uint64_t state = state_.load(std::memory_order_acquire);
  while (next_of(state) < count_of(state)) {
    if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    // The chunk is ours, so the loop can't end, or its arguments change, before done_ counts it.
    const auto count = static_cast<uint32_t>(count_of(state));
    const int64_t begin = static_cast<int64_t>(next_of(state)) * grain_;
    step_->run(begin, std::min(begin + grain_, items_));
    helped = true;
    if (done_.fetch_add(1) + 1 == count && waiting_.load() != 0) wake(done_);
    state = state_.load(std::memory_order_acquire);
  }
  return helped;
}

void Pool::await_chunks() {
  const auto count = static_cast<uint32_t>(count_of(state_.load(std::memory_order_relaxed)));
  if (spin([&] { return done_.load(std::memory_order_acquire) == count; })) return;
  // Somebody who holds a chunk has lost his core. Ours is free for him while we sleep.
  const auto start = std::chrono::steady_clock::now();
  waiting_.store(1);
  for (uint32_t done = done_.load(); done != count; done = done_.load()) sleep_on(done_, done);
  const auto now = std::chrono::steady_clock::now();
  if (now - start > kStall) note_stall(now);
}

bool Pool::alone() {
  if (alone_for_ == std::chrono::steady_clock::duration::zero()) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now < alone_until_) return true;
  // All went well for as long again: what had taken the core is gone.
  if (now > alone_until_ + alone_for_) alone_for_ = {};
  return false;
}

void Pool::note_stall(std::chrono::steady_clock::time_point now) {
  alone_for_ = std::clamp<std::chrono::steady_clock::duration>(2 * alone_for_, kAloneFirst, kAloneMost);
  alone_until_ = now + alone_for_;
}

void Pool::await_work() {
  const auto open = [&] {
    const uint64_t state = state_.load(std::memory_order_acquire);
    return next_of(state) < count_of(state) || ending_.load(std::memory_order_relaxed);
  };
  if (spin(open)) return;
  const uint32_t seen = bell_.load();
  sleeping_.fetch_add(1);
  if (!open()) sleep_on(bell_, seen);
  sleeping_.fetch_sub(1);
}

void Pool::work() {
  while (!ending_.load(std::memory_order_relaxed)) {
    if (!help()) await_work();
  }
}

Pool& pool() {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_pool == nullptr || g_owner != process()) {
    g_pool = new Pool(cores());
    g_owner = process();
  }
  return *g_pool;
}

void set_threads(int threads) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_pool != nullptr && g_owner == process()) {
    if (g_pool->threads() == threads) return;
    delete g_pool;
    g_pool = nullptr;
  }
  g_pool = new Pool(threads);
  g_owner = process();
}

}  // namespace r1
