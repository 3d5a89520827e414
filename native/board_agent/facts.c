#define _GNU_SOURCE
#include "facts.h"

#include <gnu/libc-version.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>

#ifndef AGENT_TVM_VERSION
#error "define AGENT_TVM_VERSION, a string: the release of the runtime library"
#endif

enum { CPUINFO_MAX = 1 << 20 };

// Arm's part numbers: Main ID Register, section "MIDR_EL1" of each core's reference manual.
static const struct {
  unsigned part;
  const char* name;
} kArmParts[] = {
    {0xd03, "Cortex-A53"}, {0xd04, "Cortex-A35"},  {0xd05, "Cortex-A55"},   {0xd07, "Cortex-A57"},
    {0xd08, "Cortex-A72"}, {0xd09, "Cortex-A73"},  {0xd0a, "Cortex-A75"},   {0xd0b, "Cortex-A76"},
    {0xd0c, "Neoverse-N1"}, {0xd0d, "Cortex-A77"}, {0xd40, "Neoverse-V1"},  {0xd41, "Cortex-A78"},
    {0xd42, "Cortex-A78AE"}, {0xd44, "Cortex-X1"}, {0xd46, "Cortex-A510"},  {0xd47, "Cortex-A710"},
    {0xd48, "Cortex-X2"},  {0xd49, "Neoverse-N2"}, {0xd4f, "Neoverse-V2"},
};

long facts_cpu_number(int cpu, const char* name) {
  char line[64];
  return facts_cpu_line(cpu, name, line, sizeof line) ? strtol(line, NULL, 10) : -1;
}

bool facts_cpu_line(int cpu, const char* name, char* line, size_t capacity) {
  char path[160];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", cpu, name);
  return read_line(path, line, capacity);
}

static long meminfo_kib(const char* content, const char* name) {
  const char* row = content ? strstr(content, name) : NULL;
  return row ? strtol(row + strlen(name), NULL, 10) : -1;
}

long facts_memory_total_mib(void) {
  Text content = {0};
  read_file("/proc/meminfo", &content, 65536);
  long kib = meminfo_kib(content.data, "MemTotal:");
  text_free(&content);
  return kib < 0 ? -1 : kib / 1024;
}

// Copies what stands behind the colon of the first row of `content` that begins with `name`.
static bool row_value(const char* content, const char* name, char* value, size_t capacity) {
  for (const char* row = content; row && *row; row = strchr(row, '\n'), row += row != NULL) {
    if (strncmp(row, name, strlen(name)) != 0) continue;
    const char* begin = strchr(row, ':');
    if (begin == NULL) return false;
    begin += 1 + strspn(begin + 1, " \t");
    snprintf(value, capacity, "%.*s", (int)strcspn(begin, "\n"), begin);
    return true;
  }
  return false;
}

static const char* arm_name(unsigned part) {
  for (size_t i = 0; i < sizeof kArmParts / sizeof *kArmParts; ++i) {
    if (kArmParts[i].part == part) return kArmParts[i].name;
  }
  return NULL;
}

// Returns the row of /proc/cpuinfo's `name` for one processor as a number, -1 where there is none.
static long cpuinfo_number(const char* content, int cpu, const char* name) {
  for (const char* row = content; row && (row = strstr(row, "processor")) != NULL; row += 9) {
    char number[32];
    if ((row == content || row[-1] == '\n') && row_value(row, "processor", number, sizeof number) &&
        atoi(number) == cpu) {
      const char* end = strstr(row, "\n\n");
      size_t size = end ? (size_t)(end - row) : strlen(row);
      char* part = strndup(row, size);
      long value = -1;
      if (part && row_value(part, name, number, sizeof number)) value = strtol(number, NULL, 0);
      free(part);
      return value;
    }
  }
  return -1;
}

static const char* core_name(const char* cpuinfo, int cpu) {
  long part = cpuinfo_number(cpuinfo, cpu, "CPU part");
  if (part < 0) {
    char line[64];
    if (facts_cpu_line(cpu, "regs/identification/midr_el1", line, sizeof line)) {
      part = (long)(strtoull(line, NULL, 16) >> 4 & 0xfff);
    }
  }
#ifdef __aarch64__
  if (part < 0 && (getauxval(AT_HWCAP) & (1 << 11))) {  // HWCAP_CPUID: the kernel answers this
    unsigned long midr;
    __asm__("mrs %0, MIDR_EL1" : "=r"(midr));
    part = (long)(midr >> 4 & 0xfff);
  }
#endif
  return part < 0 ? NULL : arm_name((unsigned)part);
}

#ifdef __aarch64__
// Linux's arch/arm64/include/uapi/asm/hwcap.h, as /proc/cpuinfo names them.
static void add_features(Text* text, const char* cpuinfo) {
  static const struct {
    int word, bit;
    const char* name;
  } kBits[] = {{0, 0, "fp"},       {0, 1, "asimd"},    {0, 3, "aes"},   {0, 4, "pmull"},
               {0, 7, "crc32"},    {0, 8, "atomics"},  {0, 9, "fphp"},  {0, 10, "asimdhp"},
               {0, 12, "asimdrdm"}, {0, 20, "asimddp"}, {0, 22, "sve"},  {0, 23, "asimdfhm"},
               {1, 1, "sve2"},     {1, 13, "i8mm"},    {1, 14, "bf16"}};
  (void)cpuinfo;
  unsigned long words[2] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
  const char* comma = "";
  for (size_t i = 0; i < sizeof kBits / sizeof *kBits; ++i) {
    if (words[kBits[i].word] >> kBits[i].bit & 1) {
      text_addf(text, "%s\"%s\"", comma, kBits[i].name);
      comma = ",";
    }
  }
}
#else
static void add_features(Text* text, const char* cpuinfo) {
  static const char* const kNames[] = {"sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni",
                                       "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
                                       "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8"};
  char flags[8192] = " ";
  if (!row_value(cpuinfo, "flags", flags + 1, sizeof flags - 2)) return;
  strcat(flags, " ");
  const char* comma = "";
  for (size_t i = 0; i < sizeof kNames / sizeof *kNames; ++i) {
    char word[32];
    snprintf(word, sizeof word, " %s ", kNames[i]);
    if (strstr(flags, word)) {
      text_addf(text, "%s\"%s\"", comma, kNames[i]);
      comma = ",";
    }
  }
}
#endif

static void add_number(Text* text, const char* name, long value) {
  if (value < 0) {
    text_addf(text, ",\"%s\":null", name);
  } else {
    text_addf(text, ",\"%s\":%ld", name, value);
  }
}

static long khz_as_mhz(int cpu, const char* name) {
  long khz = facts_cpu_number(cpu, name);
  return khz < 0 ? -1 : khz / 1000;
}

static void add_cpu(Text* text, const char* cpuinfo, int cpu) {
  char governor[64];
  text_addf(text, "{\"cpu\":%d,\"core\":", cpu);
  text_add_json(text, core_name(cpuinfo, cpu));
  add_number(text, "max_mhz", khz_as_mhz(cpu, "cpufreq/cpuinfo_max_freq"));
  add_number(text, "cur_mhz", khz_as_mhz(cpu, "cpufreq/scaling_cur_freq"));
  bool governed = facts_cpu_line(cpu, "cpufreq/scaling_governor", governor, sizeof governor);
  text_add(text, ",\"governor\":");
  text_add_json(text, governed ? governor : NULL);
  add_number(text, "capacity", facts_cpu_number(cpu, "cpu_capacity"));
  text_add(text, "}");
}

// The hottest zone; a board has one for the processor and may have others that are cooler.
static void add_temperature(Text* text) {
  long hottest = -1;
  for (int zone = 0; zone < 32; ++zone) {
    char path[80];
    char line[32];
    snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", zone);
    if (!read_line(path, line, sizeof line)) continue;
    long value = strtol(line, NULL, 10);
    if (value > hottest && value < 200000) hottest = value;
  }
  if (hottest < 0) {
    text_add(text, ",\"temperature_c\":null");
  } else {
    text_addf(text, ",\"temperature_c\":%.1f", (double)hottest / 1000);
  }
}

// QEMU's user mode stands in for /proc/self/exe, but not for the same link under thread-self.
static bool is_emulated(void) {
  char path[512];
  ssize_t size = readlink("/proc/thread-self/exe", path, sizeof path - 1);
  if (size <= 0) return false;
  path[size] = '\0';
  const char* name = strrchr(path, '/');
  return strncmp(name ? name + 1 : path, "qemu-", 5) == 0;
}

void facts_json(Text* text) {
  Text cpuinfo = {0};
  Text meminfo = {0};
  struct utsname system;
  char model[128];
  char board[128];
  read_file("/proc/cpuinfo", &cpuinfo, CPUINFO_MAX);
  read_file("/proc/meminfo", &meminfo, 65536);
  uname(&system);
  const char* content = cpuinfo.data ? cpuinfo.data : "";
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof allowed, &allowed);

  const char* name = NULL;
  for (int cpu = CPUS_MAX - 1; cpu >= 0 && name == NULL; --cpu) {
    // The last processors are the fast ones where a board has two kinds.
    if (CPU_ISSET(cpu, &allowed)) name = core_name(content, cpu);
  }
  if (name == NULL && row_value(content, "model name", model, sizeof model)) name = model;
  text_add(text, "{\"cpu\":");
  text_add_json(text, name);
  text_add(text, ",\"machine\":");
  text_add_json(text, system.machine);
  text_add(text, ",\"board\":");
  text_add_json(text, read_line("/proc/device-tree/model", board, sizeof board) ? board : NULL);
  text_add(text, ",\"features\":[");
  add_features(text, content);
  text_addf(text, "],\"cores\":%d,\"cpus\":[", CPU_COUNT(&allowed));
  const char* comma = "";
  for (int cpu = 0; cpu < CPUS_MAX; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    text_add(text, comma);
    add_cpu(text, content, cpu);
    comma = ",";
  }
  text_add(text, "]");
  add_temperature(text);
  long total = meminfo_kib(meminfo.data, "MemTotal:");
  long available = meminfo_kib(meminfo.data, "MemAvailable:");
  add_number(text, "memory_total_mib", total < 0 ? -1 : total / 1024);
  add_number(text, "memory_free_mib", available < 0 ? -1 : available / 1024);
  text_add(text, ",\"kernel\":");
  text_add_json(text, system.release);
  text_add(text, ",\"glibc\":");
  text_add_json(text, gnu_get_libc_version());
  text_add(text, ",\"tvm\":");
  text_add_json(text, AGENT_TVM_VERSION);
  text_addf(text, ",\"emulated\":%s}", is_emulated() ? "true" : "false");
  text_free(&cpuinfo);
  text_free(&meminfo);
}
