// A connection from its first byte until it is served, answered or closed. Nothing here blocks.
#ifndef BOARD_AGENT_PEER_H_
#define BOARD_AGENT_PEER_H_

#include "auth.h"
#include "text.h"

enum { REQUEST_KEY_MAX = 1024, WORD_MAX = 128, LABEL_MAX = 64 };

typedef enum {
  PEER_NONE,     // this place is not taken
  PEER_FIRST,    // what the peer wants is not known yet
  PEER_NONCE,    // it authenticates
  PEER_PROOF,
  PEER_LENGTH,   // it wants a session
  PEER_KEY,
  PEER_QUEUED,   // it waits for its turn
  PEER_ANSWER,   // it is being told the status
  PEER_DRAIN,    // it has been told how its session ended; what it still sends is thrown away
} PeerState;

// What a client asks for.
typedef struct {
  char key[WORD_MAX];   // behind `client:`
  char id[LABEL_MAX];   // empty, or its own name for the session
  char user[LABEL_MAX];
  double timeout_s;     // 0: not said
} Request;

typedef struct {
  PeerState state;
  int fd;
  double deadline;
  unsigned long order;  // of arrival
  bool authenticated;
  uint8_t in[REQUEST_KEY_MAX];
  size_t have, need;
  uint8_t nonce_c[NONCE_SIZE], nonce_s[NONCE_SIZE];
  Request request;
  Text out;
  size_t sent;
} Peer;

typedef enum { PEER_GOES_ON, PEER_GONE, PEER_WANTS_STATUS, PEER_WANTS_SESSION } PeerEvent;

// Takes a fresh connection.
void peer_open(Peer* peer, int fd, unsigned long order, double deadline);

// Frees the place; closes the connection unless `keep`.
void peer_close(Peer* peer, bool keep);

// Handles what poll reported. After PEER_WANTS_... the caller changes the state or closes.
PeerEvent peer_step(Peer* peer, const AuthKey* key, short events);

// What to poll for.
short peer_interest(const Peer* peer);

#endif  // BOARD_AGENT_PEER_H_
