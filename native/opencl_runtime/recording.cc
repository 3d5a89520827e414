#include "recording.h"

#include <algorithm>

#include "device.h"

namespace tvm_mobilenet::opencl {

namespace {

// Events hold memory of the driver; this many are kept before they are waited for and read.
constexpr std::size_t kPendingMax = 1024;

// One that its owner dropped without stopping it, over an error, is gone from here by itself.
thread_local std::vector<std::weak_ptr<Recording>> active;

cl_ulong Instant(cl_event event, cl_profiling_info name) {
  cl_ulong value = 0;
  CL_CALL(clGetEventProfilingInfo, event, name, sizeof value, &value, nullptr);
  return value;
}

}  // namespace

std::shared_ptr<Recording> Recording::Begin() {
  DeviceList::Get().FinishAll();
  auto recording = std::make_shared<Recording>();
  active.push_back(recording);
  recording->began_ = std::chrono::steady_clock::now();
  return recording;
}

bool Recording::IsActive() {
  if (active.empty()) return false;
  const auto is_gone = [](const std::weak_ptr<Recording>& one) { return one.expired(); };
  active.erase(std::remove_if(active.begin(), active.end(), is_gone), active.end());
  return !active.empty();
}

void Recording::Add(cl_event event) {
  for (const std::weak_ptr<Recording>& one : active) {
    const std::shared_ptr<Recording> recording = one.lock();
    if (recording == nullptr) continue;
    CL_CALL(clRetainEvent, event);
    recording->pending_.emplace_back(event);
    ++recording->kernels_;
    if (recording->pending_.size() >= kPendingMax) recording->Drain();
  }
}

void Recording::Stop() {
  const auto is_this = [this](const std::weak_ptr<Recording>& one) {
    return one.lock().get() == this;
  };
  // Off the list first: what follows may fail.
  active.erase(std::remove_if(active.begin(), active.end(), is_this), active.end());
  DeviceList::Get().FinishAll();
  host_ = std::chrono::steady_clock::now() - began_;
  Drain();
}

void Recording::Drain() {
  if (pending_.empty()) return;
  std::vector<cl_event> events;
  for (const EventHandle& event : pending_) events.push_back(event.get());
  CL_CALL(clWaitForEvents, static_cast<cl_uint>(events.size()), events.data());
  for (cl_event event : events) {
    const cl_ulong begin = Instant(event, CL_PROFILING_COMMAND_START);
    const cl_ulong end = Instant(event, CL_PROFILING_COMMAND_END);
    if (end > begin) device_ns_ += static_cast<int64_t>(end - begin);
  }
  pending_.clear();
}

int64_t Recording::nanoseconds() const { return kernels_ > 0 ? device_ns_ : host_.count(); }

}  // namespace tvm_mobilenet::opencl
