#include "memory/recorder.h"

#include <stdexcept>

namespace torch_ext::memory {

Recorder::Recorder() {
  InstallAllocator();
  if (CurrentObserver() != nullptr) {
    throw std::logic_error("a call in this thread is recorded already, or has an arena");
  }
  SetObserver(this);
}

void Recorder::Stop() {
  if (CurrentObserver() == this) SetObserver(nullptr);
}

void* Recorder::Serve(std::int64_t /*bytes*/) {
  return nullptr;
}
void Recorder::Allocated(const void* address, std::int64_t bytes) {
  live_[address] = blocks_.size();
  blocks_.push_back({bytes, num_steps_++, std::nullopt});
}
void Recorder::Released(const void* address) {
  const auto found = live_.find(address);
  if (found == live_.end()) return;
  blocks_[found->second].death = num_steps_++;
  live_.erase(found);
}

}  // namespace torch_ext::memory
