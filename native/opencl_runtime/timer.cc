#include "timer.h"

#include "recording.h"

namespace tvm_mobilenet::opencl {

namespace {

class OpenCLTimer final : public tvm::runtime::TimerNode {
 public:
  void Start() final { recording_ = Recording::Begin(); }
  void Stop() final { recording_->Stop(); }
  int64_t SyncAndGetElapsedNanos() final { return recording_->nanoseconds(); }

  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("tvm_mobilenet.OpenCLTimer", OpenCLTimer,
                                    tvm::runtime::TimerNode);

 private:
  std::shared_ptr<Recording> recording_;
};

}  // namespace

tvm::runtime::Timer MakeTimer(DLDevice) {
  return tvm::runtime::Timer(tvm::ffi::make_object<OpenCLTimer>());
}

}  // namespace tvm_mobilenet::opencl
