// What one thread allocates during a call: the sizes, in sequence, and how long each block lives.
//
// USAGE   Recorder recorder;  Run();  recorder.Stop();  recorder.blocks();
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "memory/allocator.h"

namespace torch_ext::memory {

struct RecordedBlock {
  std::int64_t bytes = 0;
  // Steps: births and deaths are numbered together, in the sequence of the thread.
  std::int32_t birth = 0;
  std::optional<std::int32_t> death;  // none: it outlives the call, or another thread released it

  friend bool operator==(const RecordedBlock&, const RecordedBlock&) = default;
};
using Recording = std::vector<RecordedBlock>;

class Recorder final : ThreadObserver {
 public:
  // Throws std::logic_error if something else observes this thread.
  Recorder();
  ~Recorder() { Stop(); }
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  void Stop();  // in the thread that made it
  const Recording& blocks() const { return blocks_; }

 private:
  void* Serve(std::int64_t bytes) override;
  void Allocated(const void* address, std::int64_t bytes) override;
  void Released(const void* address) override;

  Recording blocks_;
  std::unordered_map<const void*, std::size_t> live_;
  std::int32_t num_steps_ = 0;
};

}  // namespace torch_ext::memory
