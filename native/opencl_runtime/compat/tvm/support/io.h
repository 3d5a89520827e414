// Declares what TVM's headers say about streams, and defines none of it.
//
// tvm/runtime/tensor.h and metadata.h include this header and the wheels do not ship it. Nothing
// here streams anything: module_bytes.cc reads and writes the format itself.
#ifndef TVM_SUPPORT_IO_H_
#define TVM_SUPPORT_IO_H_

#include <cstddef>

namespace tvm {
namespace support {

class Stream;

template <typename T, typename = void>
struct Serializer {
  static void Write(Stream* stream, const T& value);
  static bool Read(Stream* stream, T* value);
};

class Stream {
 public:
  std::size_t Read(void* data, std::size_t size);
  std::size_t Write(const void* data, std::size_t size);
  template <typename T>
  bool Read(T* value);
  template <typename T>
  void Write(const T& value);
  template <typename T>
  bool ReadArray(T* values, std::size_t count);
  template <typename T>
  void WriteArray(const T* values, std::size_t count);
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_IO_H_
