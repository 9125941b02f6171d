// A fiber is a stack of its own that one OS thread can jump to and back from. Each emulated CUDA
// thread runs on one: a switch costs tens of nanoseconds, so blocks of a thousand threads that meet
// at barriers all the time stay cheap, and what runs next is the emulator's choice alone.
#pragma once

#include <cstddef>

namespace erd::emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry(argument) at the bottom of an empty stack. What ran on the stack
  // before is forgotten; its destructors do not run.
  void start(void (*entry)(void*), void* argument);
  // From the OS thread's own stack into the fiber, until its next suspend().
  void resume();
  // From the running fiber back to where it was resumed. The last one says so: AddressSanitizer
  // then lets go of the frames.
  void suspend(bool last);

 private:
  struct Switches;  // the processor- and sanitizer-specific part, fiber.cpp
  static void first_frame();

  unsigned char* mapping_ = nullptr;  // a guard page, then the stack
  unsigned char* stack_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  Switches* switches_ = nullptr;
};

// ThreadSanitizer learns of the emulator's barriers by these; they do nothing in other builds. What
// happened before a release is visible after a later acquire of the same token.
void release(char* token);
void acquire(char* token);

// While one of these exists, ThreadSanitizer does not watch the running fiber: what the emulator
// itself allocates and moves is no access of the kernel's.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
  Unwatched& operator=(const Unwatched&) = delete;
};

// AddressSanitizer then reports every access; nothing in other builds.
void poison(const void* begin, size_t bytes);
void unpoison(const void* begin, size_t bytes);

}  // namespace erd::emulation
