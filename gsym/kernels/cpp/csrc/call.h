// How the library is called: what a function answers, since nothing may be thrown at its caller.
#pragma once

#include <cstdint>
#include <new>
#include <stdexcept>

namespace gsym {

// Mirrored in cpp/library.py.
enum Answer { DONE, MISFIT, NO_MEMORY };

template <typename Work> int answer(Work work) {
  try {
    work();
  } catch (const std::bad_alloc &) {
    return NO_MEMORY;
  } catch (const std::length_error &) {
    return NO_MEMORY;
  }
  return DONE;
}

template <typename Work> int answer(bool fits, Work work) { return fits ? answer(work) : MISFIT; }

// Whether the segments are those of all entries, from the first to the last.
template <typename I> bool spans(const I *pointers, int64_t segments, int64_t entries) {
  return pointers && pointers[0] == 0 && pointers[segments] == entries;
}

} // namespace gsym
