#include "module_bytes.h"

#include <cstring>

#include "opencl_api.h"

namespace tvm_mobilenet::opencl {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

class Writer {
 public:
  template <typename T>
  void Number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void Text(const std::string& text) {
    Number<uint64_t>(text.size());
    bytes_ += text;
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  Reader(const char* data, std::size_t size) : next_(data), left_(size) {}

  template <typename T>
  T Number() {
    T value;
    std::memcpy(&value, Take(sizeof value), sizeof value);
    return value;
  }
  std::string Text() {
    const std::size_t size = Count(1);
    const char* data = Take(size);
    return std::string(data, size);
  }
  // A number of elements of at least `element_bytes` each, none more than there are bytes for.
  std::size_t Count(std::size_t element_bytes) {
    const uint64_t count = Number<uint64_t>();
    if (count > left_ / element_bytes) Refuse("it ends too early");
    return static_cast<std::size_t>(count);
  }
  void ExpectEnd() const {
    if (left_ != 0) Refuse(std::to_string(left_) + " bytes are left over");
  }

 private:
  const char* Take(std::size_t size) {
    if (size > left_) Refuse("it ends too early");
    const char* data = next_;
    next_ += size;
    left_ -= size;
    return data;
  }
  [[noreturn]] static void Refuse(const std::string& reason) {
    OPENCL_RUNTIME_FAIL << "a module in the library cannot be read (" << reason
                        << "); it was made with another version of TVM: compile the model again";
    TVM_FFI_UNREACHABLE();
  }

  const char* next_;
  std::size_t left_;
};

constexpr std::size_t kTypeBytes = 4, kTagBytes = 4, kLengthBytes = 8;

}  // namespace

std::string SaveModule(const ModuleContent& content) {
  Writer writer;
  writer.Text(content.format);
  writer.Number<uint64_t>(content.kernels.size());
  for (const auto& [name, info] : content.kernels) {
    writer.Text(name);
    writer.Text(name);  // once as the key, once in what it stands for
    writer.Number<uint64_t>(info.arguments.size());
    for (const DLDataType& type : info.arguments) {
      writer.Number<uint8_t>(type.code);
      writer.Number<uint8_t>(type.bits);
      writer.Number<uint16_t>(type.lanes);
    }
    writer.Number<uint64_t>(info.launch_tags.size());
    for (const std::string& tag : info.launch_tags) writer.Text(tag);
    writer.Number<uint64_t>(info.extra_tags.size());
    for (int32_t tag : info.extra_tags) writer.Number<int32_t>(tag);
  }
  writer.Text(content.code);
  return writer.Take();
}

ModuleContent LoadModule(const char* data, std::size_t size) {
  Reader reader(data, size);
  ModuleContent content;
  content.format = reader.Text();
  const std::size_t kernels = reader.Count(kLengthBytes);
  for (std::size_t i = 0; i < kernels; ++i) {
    const std::string name = reader.Text();
    reader.Text();
    KernelInfo info;
    info.arguments.resize(reader.Count(kTypeBytes));
    for (DLDataType& type : info.arguments) {
      type.code = reader.Number<uint8_t>();
      type.bits = reader.Number<uint8_t>();
      type.lanes = reader.Number<uint16_t>();
    }
    info.launch_tags.resize(reader.Count(kLengthBytes));
    for (std::string& tag : info.launch_tags) tag = reader.Text();
    info.extra_tags.resize(reader.Count(kTagBytes));
    for (int32_t& tag : info.extra_tags) tag = reader.Number<int32_t>();
    content.kernels.emplace(name, std::move(info));
  }
  content.code = reader.Text();
  reader.ExpectEnd();
  return content;
}

}  // namespace tvm_mobilenet::opencl
