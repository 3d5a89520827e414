#define _GNU_SOURCE
#include "threads.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "facts.h"
#include "ffi.h"

// threading_backend.h of TVM's runtime: every thread on one processor of the list.
enum { ONE_CORE_PER_THREAD = -2 };

typedef struct {
  int count;
  int fast;  // the first so many are fast, and no two of them are one core
  int cpus[CPUS_MAX];
} Ranking;

static long speed_of(int cpu) {
  long speed = facts_cpu_number(cpu, "cpu_capacity");
  return speed >= 0 ? speed : facts_cpu_number(cpu, "cpufreq/cpuinfo_max_freq");
}

// Whether a lower-numbered processor is another hardware thread of the same core.
static bool is_second_thread(int cpu) {
  char siblings[64];
  if (!facts_cpu_line(cpu, "topology/thread_siblings_list", siblings, sizeof siblings)) return false;
  return atoi(siblings) != cpu;
}

static void rank(const cpu_set_t* allowed, Ranking* ranking) {
  long top = -1;
  int rest[CPUS_MAX];
  int left = 0;
  *ranking = (Ranking){0};
  for (int cpu = 0; cpu < CPUS_MAX; ++cpu) {
    if (CPU_ISSET(cpu, allowed) && speed_of(cpu) > top) top = speed_of(cpu);
  }
  for (int cpu = 0; cpu < CPUS_MAX; ++cpu) {
    if (!CPU_ISSET(cpu, allowed)) continue;
    if (speed_of(cpu) == top && !is_second_thread(cpu)) {
      ranking->cpus[ranking->count++] = cpu;
    } else {
      rest[left++] = cpu;
    }
  }
  ranking->fast = ranking->count;
  memcpy(ranking->cpus + ranking->count, rest, (size_t)left * sizeof *rest);
  ranking->count += left;
}

// Replaces the ranking by the processors that the user lists.
static bool take_list(const char* list, const cpu_set_t* allowed, Ranking* ranking) {
  *ranking = (Ranking){0};
  for (const char* c = list; *c;) {
    char* end;
    long cpu = strtol(c, &end, 10);
    if (end == c || (*end && *end != ',')) {
      ffi_fail("ValueError", "board: cpus '%.80s': give numbers with commas between them", list);
      return false;
    }
    bool known = cpu >= 0 && cpu < CPUS_MAX && CPU_ISSET((int)cpu, allowed);
    for (int i = 0; known && i < ranking->count; ++i) known = ranking->cpus[i] != cpu;
    if (!known) {
      ffi_fail("ValueError", "board: cpus '%.80s': %ld is twice there, or not one that may be used",
               list, cpu);
      return false;
    }
    ranking->cpus[ranking->count++] = (int)cpu;
    c = *end ? end + 1 : end;
  }
  ranking->fast = ranking->count;
  return true;
}

static int make_pool(const int* cpus, int count) {
  TVMFFIAny names[CPUS_MAX];
  char digits[CPUS_MAX][8];
  for (int i = 0; i < count; ++i) {
    snprintf(digits[i], sizeof digits[i], "%d", cpus[i]);
    names[i] = ffi_text(digits[i]);
  }
  TVMFFIAny list;
  TVMFFIAny result;
  if (ffi_call_global("ffi.Array", names, count, &list) != 0) return -1;
  TVMFFIAny args[] = {ffi_int(ONE_CORE_PER_THREAD), ffi_int(count), list};
  int failed = ffi_call_global("runtime.config_threadpool", args, 3, &result);
  ffi_release(&list);
  if (failed || ffi_call_global("runtime.NumThreads", NULL, 0, &result) != 0) return -1;
  if (result.v_int64 == count) return 0;
  return ffi_fail("RuntimeError",
                  "board: threads %d: this session's pool has been made with %d; begin another",
                  count, (int)result.v_int64);
}

int threads_configure(int64_t count, const char* cpus, Text* json) {
  static cpu_set_t allowed;  // as it was before the first call narrowed it
  static bool known;
  Ranking ranking;
  if (!known) {
    CPU_ZERO(&allowed);
    sched_getaffinity(0, sizeof allowed, &allowed);
    known = true;
  }
  if (*cpus) {
    if (!take_list(cpus, &allowed, &ranking)) return -1;
  } else {
    rank(&allowed, &ranking);
  }
  if (count == 0) count = ranking.fast;
  if (count < 1 || count > ranking.count) {
    return ffi_fail("ValueError", "board: threads %d: there are %d processors; give 1 to %d",
                    (int)count, ranking.count, ranking.count);
  }
  if (make_pool(ranking.cpus, (int)count) != 0) return -1;
  // TVM pins the workers and not their caller, which beside a worker that spins would share its core.
  // Alone, the caller may move among what was listed, or among the fast ones.
  cpu_set_t mine;
  CPU_ZERO(&mine);
  int width = count == 1 ? (ranking.fast ? ranking.fast : ranking.count) : 1;
  for (int i = 0; i < width; ++i) CPU_SET(ranking.cpus[i], &mine);
  if (sched_setaffinity(0, sizeof mine, &mine) != 0) {
    return ffi_fail("OSError", "board: cpus: the kernel does not let this process choose them");
  }
  text_addf(json, "{\"threads\":%d,\"cpus\":[", (int)count);
  int shown = count == 1 ? width : (int)count;
  for (int i = 0; i < shown; ++i) text_addf(json, "%s%d", i ? "," : "", ranking.cpus[i]);
  text_add(json, "]}");
  return 0;
}
