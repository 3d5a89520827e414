// The agent's loop: accepts, hands out turns, runs one session at a time and outlives all of them.
#ifndef BOARD_AGENT_SUPERVISOR_H_
#define BOARD_AGENT_SUPERVISOR_H_

#include "options.h"

// Serves until SIGTERM or SIGINT. Returns the program's exit code.
int supervisor_run(const Options* options);

#endif  // BOARD_AGENT_SUPERVISOR_H_
