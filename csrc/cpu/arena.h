// Memory of a task: one allocation for all tasks of a thread, handed out in pieces.

#pragma once

#include <new>

#include "vector.h"

namespace mmer::cpu {
namespace {

// Hands out pieces of one allocation. Without memory it only counts, so that a structure that takes
// its pieces in its constructor states its size by being made once.
class Arena {
 public:
  explicit Arena(float* memory = nullptr) : memory_(memory) {}

  // Room for `count` elements, from a cache line's begin on.
  template <class Element = float>
  Element* take(int64_t count) {
    float* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    const int64_t floats = (count * sizeof(Element) + sizeof(float) - 1) / sizeof(float);
    used_ += round_up(floats, 16);
    return reinterpret_cast<Element*>(piece);
  }

  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

template <class Workspace, class Problem>
class Scratch {
 public:
  explicit Scratch(const Problem& problem)
      : memory_(allocate(problem)), arena_(memory_), workspace(arena_, problem) {}
  ~Scratch() { ::operator delete(memory_, alignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  static constexpr std::align_val_t alignment{64};

  static float* allocate(const Problem& problem) {
    Arena counting;
    Workspace measured(counting, problem);
    return static_cast<float*>(::operator new(counting.used() * sizeof(float), alignment));
  }

  float* memory_;
  Arena arena_;

 public:
  Workspace workspace;
};

}  // namespace
}  // namespace mmer::cpu
