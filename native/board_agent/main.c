// The board agent: TVM's RPC server for a board, one process a session, that outlives all of them.
#define _GNU_SOURCE

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "facts.h"
#include "options.h"
#include "supervisor.h"

int main(int argc, char** argv) {
  static Options options;
  int code = options_parse(argc, argv, &options);
  if (code >= 0) return code;
  if (options.facts) {
    Text json = {0};
    facts_json(&json);
    puts(json.failed ? "null" : json.data);
    text_free(&json);
    return EXIT_SUCCESS;
  }
  return supervisor_run(&options);
}
