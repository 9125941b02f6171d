#include "threads/thread_pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace erd {
namespace {

std::atomic<int64_t> wanted_threads{0};

int64_t usable_processors() {
#if defined(__linux__)
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof(usable), &usable) == 0) return CPU_COUNT(&usable);
#endif
  return std::max<int64_t>(1, std::thread::hardware_concurrency());
}

using Body = void (*)(void*, int64_t, int64_t);

// One range that several threads share: each takes the next chunk until none is left.
struct Job {
  int64_t count = 0;
  int64_t chunk = 1;
  Body body = nullptr;
  void* context = nullptr;
  std::atomic<int64_t> next{0};
};

// Workers that sleep between jobs. One job runs at a time; whoever comes while the pool is busy
// does its work alone, which is no slower than waiting for processors that are all taken.
class ThreadPool {
 public:
  void run(Job& job, int64_t threads) {
    const std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return job.body(job.context, 0, job.count);
    const int64_t helpers = std::min(grow_to(threads - 1), threads - 1);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      seats_ = helpers;
    }
    for (int64_t i = 0; i < helpers; ++i) wake_.notify_one();
    work_on(job);
    std::unique_lock<std::mutex> lock(mutex_);
    // Who has not woken up by now need not: every chunk is taken.
    seats_ = 0;
    idle_.wait(lock, [this] { return working_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  // Starts workers until there are `count`, or as many as the system allows.
  int64_t grow_to(int64_t count) {
    try {
      for (; workers_ < count; ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
    return workers_;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++working_;
      Job& job = *job_;
      lock.unlock();
      work_on(job);
      lock.lock();
      if (--working_ == 0) idle_.notify_one();
    }
  }

  void work_on(Job& job) {
    try {
      for (;;) {
        const int64_t begin = job.next.fetch_add(job.chunk);
        if (begin >= job.count) return;
        job.body(job.context, begin, std::min(begin + job.chunk, job.count));
      }
    } catch (...) {
      job.next = job.count;
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  std::mutex busy_;  // held by the caller whose job runs
  int64_t workers_ = 0;

  std::mutex mutex_;  // of all below
  std::condition_variable wake_, idle_;
  Job* job_ = nullptr;
  int64_t seats_ = 0;    // workers that may still join the job
  int64_t working_ = 0;  // workers that are in it
  std::exception_ptr error_;
};

std::atomic<ThreadPool*> current_pool{nullptr};

// Made by the first call that needs it and never destroyed: at the end of the process its workers
// sleep on it. A forked child has no workers, and locks that may be held for ever, so it forgets
// its parent's pool and makes its own.
ThreadPool& pool() {
  static const int forgets = pthread_atfork(nullptr, nullptr, [] { current_pool = nullptr; });
  static_cast<void>(forgets);
  ThreadPool* known = current_pool;
  if (known != nullptr) return *known;
  auto* made = new ThreadPool;
  if (current_pool.compare_exchange_strong(known, made)) return *made;
  delete made;
  return *known;
}

void run_in_pool(int64_t count, int64_t grain, Body body, void* context) {
  if (count == 0) return;
  const int64_t tasks = (count + grain - 1) / grain;
  const int64_t threads = std::min(tasks, tasks > 1 ? num_threads() : 1);
  if (threads == 1) return body(context, 0, count);
  Job job;
  job.count = count;
  // A few chunks for each thread, so that a slow one does not keep the others waiting.
  constexpr int64_t kChunksPerThread = 4;
  job.chunk = std::max(grain, count / (threads * kChunksPerThread));
  job.body = body;
  job.context = context;
  pool().run(job, threads);
}

}  // namespace

void set_num_threads(int64_t threads) { wanted_threads = threads; }

int64_t num_threads() {
  const int64_t wanted = wanted_threads;
  return wanted > 0 ? wanted : usable_processors();
}

ParallelFor pool_parallel_for() { return {run_in_pool}; }

}  // namespace erd
