// Context switches, and what the sanitizers must be told about them. Compiled without
// ThreadSanitizer's instrumentation even in its build (ERD_EMULATION_TSAN): the emulator's own
// bookkeeping is no part of the kernels under test.
#include "cuda_emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(ERD_EMULATION_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace erd::emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(ERD_EMULATION_TSAN)
constexpr size_t kStackBytes = 512 * 1024;  // instrumented frames are several times as large
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

Fiber* starting = nullptr;

}  // namespace

#if defined(__x86_64__)

// Saves the registers that a function must keep on the stack, exchanges stacks, takes the others'
// registers back. The floating-point modes are the same everywhere and stay as they are.
extern "C" void erd_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl erd_emulation_switch
.hidden erd_emulation_switch
.type erd_emulation_switch, @function
erd_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size erd_emulation_switch, .-erd_emulation_switch
)");

struct Context {
  void* stack_pointer = nullptr;

  void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
    // As if the entry had been called from nowhere: its address on top of six registers, and above
    // it an empty return address where backtraces end.
    auto* top = reinterpret_cast<uintptr_t*>(stack + bytes) - 1;
    *top-- = 0;
    *top-- = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *top-- = 0;
    stack_pointer = top + 1;
  }
  void switch_to(Context& other) { erd_emulation_switch(&stack_pointer, other.stack_pointer); }
};

#else

struct Context {
  ucontext_t registers = {};

  void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&registers);
    registers.uc_stack.ss_sp = stack;
    registers.uc_stack.ss_size = bytes;
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&registers, &other.registers); }
};

#endif

struct Fiber::Switches {
  Context own, caller;
#if defined(__SANITIZE_ADDRESS__)
  void* own_frames = nullptr;  // AddressSanitizer's shadow stacks
  void* caller_frames = nullptr;
  const void* caller_stack = nullptr;
  size_t caller_stack_bytes = 0;
#endif
#if defined(ERD_EMULATION_TSAN)
  void* thread = nullptr;  // the fiber as ThreadSanitizer knows it
  void* caller_thread = nullptr;
#endif
};

Fiber::Fiber() : switches_(new Switches) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* mapping = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  stack_ = mapping_ + page;
  mprotect(mapping_, page, PROT_NONE);  // a stack that overflows stops the program
}

Fiber::~Fiber() {
  // ThreadSanitizer's part stays: it does not let go of a fiber that was abandoned in the middle.
  unpoison(stack_, kStackBytes);
  munmap(mapping_, static_cast<size_t>(stack_ - mapping_) + kStackBytes);
  delete switches_;
}

void Fiber::start(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  unpoison(stack_, kStackBytes);  // frames that were abandoned left their marks
  switches_->own.prepare(stack_, kStackBytes, &Fiber::first_frame);
#if defined(__SANITIZE_ADDRESS__)
  switches_->own_frames = nullptr;
#endif
#if defined(ERD_EMULATION_TSAN)
  if (switches_->thread == nullptr) switches_->thread = __tsan_create_fiber(0);
#endif
}

void Fiber::first_frame() {
  Fiber* fiber = starting;
#if defined(__SANITIZE_ADDRESS__)
  Switches& s = *fiber->switches_;
  __sanitizer_finish_switch_fiber(nullptr, &s.caller_stack, &s.caller_stack_bytes);
#endif
  fiber->entry_(fiber->argument_);  // ends in suspend(true), which does not return
}

void Fiber::resume() {
  Switches& s = *switches_;
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&s.caller_frames, stack_, kStackBytes);
#endif
#if defined(ERD_EMULATION_TSAN)
  s.caller_thread = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(s.thread, __tsan_switch_to_fiber_no_sync);
#endif
  s.caller.switch_to(s.own);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(s.caller_frames, nullptr, nullptr);
#endif
}

void Fiber::suspend(bool last) {
  Switches& s = *switches_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &s.own_frames, s.caller_stack,
                                 s.caller_stack_bytes);
#endif
#if defined(ERD_EMULATION_TSAN)
  __tsan_switch_to_fiber(s.caller_thread, __tsan_switch_to_fiber_no_sync);
#endif
  (void)last;
  s.own.switch_to(s.caller);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(s.own_frames, &s.caller_stack, &s.caller_stack_bytes);
#endif
}

void release([[maybe_unused]] char* token) {
#if defined(ERD_EMULATION_TSAN)
  __tsan_release(token);
#endif
}

void acquire([[maybe_unused]] char* token) {
#if defined(ERD_EMULATION_TSAN)
  __tsan_acquire(token);
#endif
}

Unwatched::Unwatched() {
#if defined(ERD_EMULATION_TSAN)
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}

Unwatched::~Unwatched() {
#if defined(ERD_EMULATION_TSAN)
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

void poison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(begin, bytes);
#endif
}

void unpoison([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(begin, bytes);
#endif
}

}  // namespace erd::emulation
