// The functions under `tvm_mobilenet.board.`: facts, threads, memory, times, single kernel calls.
#ifndef BOARD_AGENT_BOARD_FUNCTIONS_H_
#define BOARD_AGENT_BOARD_FUNCTIONS_H_

#include <stdbool.h>

bool board_functions_register(void);

#endif  // BOARD_AGENT_BOARD_FUNCTIONS_H_
