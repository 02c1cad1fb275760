// The one object that torch_ext puts in front of torch's CPU allocator, for meters and arenas.
//
// Installed once and never taken away: c10::SetCPUAllocator is for the life of the process, and
// memory that was allocated keeps its deleter, which is one constant function. What the object
// allocates has its address as its context, which oneDNN asserts; so what is released is found by
// address alone. torch's own reports (profilers) tell of every block, whoever serves it. All locks
// of ours are free in the child of a fork().
#pragma once

#include <cstdint>
#include <mutex>

namespace torch_ext::memory {

void InstallAllocator();  // once; later calls do nothing

// Is told of the blocks of all threads, one report at a time: `bytes` above zero were taken, below
// zero given back. Blocks that are older than the installation are not seen.
class Listener {
 public:
  virtual void Report(const void* address, std::int64_t bytes) = 0;

 protected:
  ~Listener() = default;
};
void AddListener(Listener* listener);
void RemoveListener(Listener* listener);
std::mutex& ListenersMutex();  // held while any listener is told

// Sees what its own thread allocates while it is set, and may serve it.
class ThreadObserver {
 public:
  // An address for `bytes` > 0, or null for malloc's.
  virtual void* Serve(std::int64_t bytes) = 0;
  virtual void Allocated(const void* address, std::int64_t bytes) = 0;
  virtual void Released(const void* address) = 0;  // whatever the thread releases, old blocks too

 protected:
  ~ThreadObserver() = default;
};
ThreadObserver* CurrentObserver();
void SetObserver(ThreadObserver* observer);  // of this thread; null for none

}  // namespace torch_ext::memory
