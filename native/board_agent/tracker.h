// Registration with a tracker, kept up for as long as the agent lives. Nothing here blocks but the
// look-up of the tracker's name.
//
// The tracker lends a board by telling a client its match key. This side offers one at a time,
// and a new one once a session that came with the old one has ended, or when a client was told and
// did not come.
#ifndef BOARD_AGENT_TRACKER_H_
#define BOARD_AGENT_TRACKER_H_

#include <netinet/in.h>
#include <sys/socket.h>

#include "options.h"
#include "text.h"

enum { MATCH_KEY_MAX = NAME_MAX_CHARS + 40 };

typedef enum {
  TRACKER_OFF,
  TRACKER_APART,       // waits before it tries again
  TRACKER_CONNECTING,
  TRACKER_NONCE,       // has sent a nonce, waits for the answer
  TRACKER_WELCOME,     // has sent a proof
  TRACKER_MAGIC_SENT,
  TRACKER_READY,       // no request is under way
  TRACKER_ASKED,       // waits for the answer to one
} TrackerState;

typedef enum { ASKED_INFO, ASKED_PUT, ASKED_PENDING } TrackerRequest;

typedef struct {
  TrackerState state;
  TrackerRequest asked;
  int fd;
  struct sockaddr_storage address;
  socklen_t address_size;  // 0: not looked up yet
  double deadline;         // of the answer, or when to try again
  double backoff_s;
  double next_look;
  double missing_since;  // since when the match key was told to a client that has not come
  char match_key[MATCH_KEY_MAX];
  bool offered;  // the tracker has been told the match key on this connection
  bool claimed;  // a client has come with it
  uint8_t nonce[NONCE_SIZE];
  Text in, out;
  size_t sent;
  bool reported;  // that it cannot be reached has been said
} Tracker;

void tracker_open(Tracker* tracker, const Options* options);
void tracker_close(Tracker* tracker);

// Whether a client's key is the match key; from then on it is taken.
bool tracker_claim(Tracker* tracker, const char* key);

// The session that claimed the match key is over: offer another.
void tracker_offer_again(Tracker* tracker);

// What to poll `tracker->fd` for; 0 where there is nothing to wait for.
short tracker_interest(const Tracker* tracker);

// Goes on with what poll reported and with what time has come for. `idle`: no session would suffer
// from looking up a name.
void tracker_step(Tracker* tracker, const Options* options, int port, bool idle, short events);

#endif  // BOARD_AGENT_TRACKER_H_
