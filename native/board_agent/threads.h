// The number of computing threads of a session, and the processors they run on.
#ifndef BOARD_AGENT_THREADS_H_
#define BOARD_AGENT_THREADS_H_

#include <stdint.h>
#include <tvm/ffi/c_api.h>

#include "text.h"

// Gives TVM's pool `count` threads (0: one for each fast core) on the processors that `cpus` lists
// ("4,5"; empty: the fast ones first). Writes {"threads", "cpus"}. Returns -1 with an error raised.
int threads_configure(int64_t count, const char* cpus, Text* json);

#endif  // BOARD_AGENT_THREADS_H_
