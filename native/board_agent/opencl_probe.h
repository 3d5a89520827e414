// Which OpenCL devices the board has, asked once, in a process of its own: a driver may crash or hang,
// and starts threads that must not be the supervisor's.
#ifndef BOARD_AGENT_OPENCL_PROBE_H_
#define BOARD_AGENT_OPENCL_PROBE_H_

#include <sys/types.h>

#include "text.h"

typedef struct {
  pid_t pid;  // 0: none runs
  int fd;     // where its answer comes from
  double deadline;
  Text answer;   // what has come so far
  Text devices;  // JSON, once it is known; empty where there is nothing that could be asked
} OpenCLProbe;

// Starts to ask, with the libraries of that folder; does nothing where none of them is for OpenCL.
void opencl_probe_start(OpenCLProbe* probe, const char* side_folder);

// Takes what has come, and ends what takes too long. Until `pid` is 0 it has to be called again.
void opencl_probe_step(OpenCLProbe* probe);

void opencl_probe_stop(OpenCLProbe* probe);

#endif  // BOARD_AGENT_OPENCL_PROBE_H_
