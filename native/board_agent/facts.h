// What the board is and how it is doing, as far as Linux tells without asking for rights.
#ifndef BOARD_AGENT_FACTS_H_
#define BOARD_AGENT_FACTS_H_

#include "text.h"

enum { CPUS_MAX = 256 };

// Writes a JSON object.
void facts_json(Text* text);

// Reads a number from /sys/devices/system/cpu/cpuN/`name`; -1 where there is none.
long facts_cpu_number(int cpu, const char* name);

// Reads the first line of such a file.
bool facts_cpu_line(int cpu, const char* name, char* line, size_t capacity);

// The memory of the machine in MiB.
long facts_memory_total_mib(void);

#endif  // BOARD_AGENT_FACTS_H_
