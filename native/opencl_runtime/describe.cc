#include "describe.h"

#include <cstdio>
#include <exception>

#include "device.h"
#include "program_cache.h"

namespace tvm_mobilenet::opencl {

namespace {

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += static_cast<char>(c);
    } else if (c < 0x20 || c >= 0x7f) {  // drivers' texts are ASCII; anything else is not worth it
      quoted += c < 0x20 ? ' ' : '?';
    } else {
      quoted += static_cast<char>(c);
    }
  }
  return quoted + "\"";
}

std::string QuotedOrNull(const std::string& text) { return text.empty() ? "null" : Quoted(text); }

class JsonObject {
 public:
  JsonObject& Text(const char* name, const std::string& value) { return Raw(name, Quoted(value)); }
  JsonObject& Number(const char* name, uint64_t value) { return Raw(name, std::to_string(value)); }
  JsonObject& Flag(const char* name, bool value) { return Raw(name, value ? "true" : "false"); }
  JsonObject& Raw(const char* name, const std::string& value) {
    text_ += (text_.empty() ? "" : ", ") + Quoted(name) + ": " + value;
    return *this;
  }
  std::string Take() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string DeviceJson(const DeviceProperties& known) {
  std::string items;
  for (std::size_t size : known.max_item_sizes) {
    items += (items.empty() ? "" : ", ") + std::to_string(size);
  }
  return JsonObject()
      .Text("name", known.name)
      .Text("kind", known.kind)
      .Text("platform", known.platform)
      .Text("vendor", known.vendor)
      .Text("version", known.version)
      .Text("driver", known.driver)
      .Number("compute_units", known.compute_units)
      .Number("clock_mhz", known.clock_mhz)
      .Number("max_group_size", known.max_group_size)
      .Raw("max_item_sizes", "[" + items + "]")
      .Number("local_memory_bytes", known.local_memory)
      .Number("global_memory_bytes", known.global_memory)
      .Number("max_allocation_bytes", known.max_allocation)
      .Flag("float16", known.half)
      .Flag("float64", known.doubles)
      .Flag("images", known.images)
      .Flag("unified_memory", known.unified)
      .Take();
}

}  // namespace

std::string Describe() {
  std::string library;
  std::string reason;
  std::string devices;
  try {
    DeviceList& list = DeviceList::Get();
    library = list.library();
    reason = list.reason();
    for (int i = 0; i < list.size(); ++i) {
      devices += (i == 0 ? "" : ", ") + DeviceJson(list.At(i).properties());
    }
  } catch (const std::exception& error) {
    reason = error.what();
  }
  return JsonObject()
      .Raw("library", QuotedOrNull(library))
      .Raw("reason", QuotedOrNull(reason))
      .Raw("cache", QuotedOrNull(CacheFolder()))
      .Raw("devices", "[" + devices + "]")
      .Take();
}

}  // namespace tvm_mobilenet::opencl
