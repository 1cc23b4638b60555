// A device of many threads. Each thread is a coroutine of this program and runs until it has to
// wait for others. Of the threads that can continue, the caller decides which one does so first;
// the others then lag behind as far as the synchronisation allows, so that a missing
// synchronisation shows.
#pragma once

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "support.h"

namespace cogen {
namespace driver {

constexpr int kLanesOfWarp = 32;

enum class Order { forward, backward, random };
enum class Wait { none, warp, block, grid, end };

class Grid;

// The interface that the device code uses.
struct EmulatedMachine {
  Grid* grid;
  int thread, threads;
  int64_t block, blocks;
  char* shared;

  void sync_warp() const;
  void sync_block() const;
  void sync_grid() const;
  double warp_sum(double value) const;
};

// `blocks` blocks of `threads` threads, each block with `shared_bytes` bytes of shared memory.
class Grid {
 public:
  Grid(int blocks, int threads, int64_t shared_bytes, Order order)
      : blocks_(blocks), threads_(threads), order_(order), fibers_(blocks * threads) {
    for (int b = 0; b < blocks; ++b) {
      shared_.emplace_back(shared_bytes, false);
      memset(shared_.back().data(), 0xff, static_cast<size_t>(shared_bytes));  // NaN
    }
    sums_.resize(fibers_.size());
  }

  // Runs `body` on all threads; returns whether all of them reached its end.
  bool run(const std::function<void(const EmulatedMachine&)>& body) {
    body_ = &body;
    for (Fiber& fiber : fibers_) begin(fiber);
    Random random(1);
    for (int next = chosen(random); next >= 0; next = chosen(random)) {
      resume(next);
      const size_t i = static_cast<size_t>(next), threads = static_cast<size_t>(threads_);
      release(i - i % kLanesOfWarp, kLanesOfWarp, Wait::warp);
      release(i - i % threads, threads, Wait::block);
      release(0, fibers_.size(), Wait::grid);
    }
    return all_wait(0, fibers_.size(), Wait::end);
  }

  void wait(Wait what) {
    Fiber& fiber = fibers_[static_cast<size_t>(current_)];
    fiber.waits = what;
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(what == Wait::end ? nullptr : &fake, main_stack_, main_bytes_);
    swapcontext(&fiber.context, &main_);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  // Adds as the shuffles of a warp do: in halves, where both lanes of a pair add the same two
  // numbers.
  double warp_sum(double value) {
    const size_t here = static_cast<size_t>(current_), lane = here % kLanesOfWarp;
    sums_[here] = value;
    wait(Wait::warp);
    double sums[kLanesOfWarp], before[kLanesOfWarp];
    std::copy_n(sums_.data() + here - lane, kLanesOfWarp, sums);
    for (size_t apart = kLanesOfWarp / 2; apart > 0; apart /= 2) {
      std::copy_n(sums, kLanesOfWarp, before);
      for (size_t l = 0; l < kLanesOfWarp; ++l) sums[l] = before[l] + before[l ^ apart];
    }
    wait(Wait::warp);
    return sums[lane];
  }

 private:
  // This is four times what is used. AddressSanitizer clears its records of a stack at each switch
  // to it, so that a larger stack would be slower.
  static constexpr size_t kStackBytes = 64 << 10;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char, decltype(&std::free)> stack{nullptr, &std::free};
    Wait waits = Wait::none;
  };

  void begin(Fiber& fiber) {
    fiber.stack.reset(static_cast<char*>(std::malloc(kStackBytes)));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Grid::enter, 0);
  }

  static void enter() {
    Grid& grid = *running_;
    __sanitizer_finish_switch_fiber(nullptr, &grid.main_stack_, &grid.main_bytes_);
    const int i = grid.current_, block = i / grid.threads_;
    const EmulatedMachine machine{&grid, i % grid.threads_, grid.threads_, block, grid.blocks_,
                                  grid.shared_[static_cast<size_t>(block)].data()};
    (*grid.body_)(machine);
    grid.wait(Wait::end);
  }

  void resume(int i) {
    Fiber& fiber = fibers_[static_cast<size_t>(i)];
    running_ = this;
    current_ = i;
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStackBytes);
    swapcontext(&main_, &fiber.context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }

  bool all_wait(size_t first, size_t end, Wait what) const {
    for (size_t i = first; i < end; ++i) {
      if (fibers_[i].waits != what) return false;
    }
    return true;
  }

  // Lets the `count` threads from `first` on continue, if all of them wait for `what`.
  void release(size_t first, size_t count, Wait what) {
    if (!all_wait(first, first + count, what)) return;
    for (size_t i = first; i < first + count; ++i) fibers_[i].waits = Wait::none;
  }

  // The number of the thread that continues, or -1 where none can.
  int chosen(Random& random) const {
    const int count = static_cast<int>(fibers_.size());
    const int first = static_cast<int>(random.below(static_cast<uint64_t>(count)));
    for (int k = 0; k < count; ++k) {
      const int i = order_ == Order::forward    ? k
                    : order_ == Order::backward ? count - 1 - k
                                                : (first + k) % count;
      if (fibers_[static_cast<size_t>(i)].waits == Wait::none) return i;
    }
    return -1;
  }

  inline static Grid* running_ = nullptr;

  const int blocks_, threads_;
  const Order order_;
  std::vector<Fiber> fibers_;
  std::vector<Array<char>> shared_;
  std::vector<double> sums_;
  const std::function<void(const EmulatedMachine&)>* body_ = nullptr;
  ucontext_t main_;
  const void* main_stack_ = nullptr;
  size_t main_bytes_ = 0;
  int current_ = 0;
};

inline void EmulatedMachine::sync_warp() const { grid->wait(Wait::warp); }
inline void EmulatedMachine::sync_block() const { grid->wait(Wait::block); }
inline void EmulatedMachine::sync_grid() const { grid->wait(Wait::grid); }
inline double EmulatedMachine::warp_sum(double value) const { return grid->warp_sum(value); }

}  // namespace driver
}  // namespace cogen
