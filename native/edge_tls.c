/* TLS: OpenSSL over the connection's own socket. Version 1.2 or newer, ciphers that HTTP/2 permits, ALPN.
 *
 * There is no resumption of sessions: a client whose certificate was revoked, or whose CA was changed, is judged anew
 * each time. The files are read again, all of them together, when a connection comes and one of them is not what it was:
 * another inode, size or time of change, which takes a stat of each and 3 us a connection. A file that was changed less
 * than YOUNG_SECONDS before it was read is read again in any case, for it could have been changed twice within what its
 * file system's clock tells apart. Files that don't fit each other, as in the middle of a renewal, change nothing: what
 * was read before goes on, and edge_stats and edge_tls_error() tell. What is open goes on with what it has. */
#include "edge_inside.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { YOUNG_SECONDS = 2 };

static int choose(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *in,
                  unsigned in_length, void *user) {
    (void)ssl, (void)user;
    static const unsigned char ours[] = "\x02h2\x08http/1.1";
    unsigned char *chosen;
    if (SSL_select_next_proto(&chosen, out_length, ours, sizeof ours - 1, in, in_length) != OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

/* An encrypted key would make OpenSSL ask whoever sits at the terminal. */
static int no_password(char *to, int size, int writing, void *user) {
    (void)to, (void)size, (void)writing, (void)user;
    return 0;
}

static SSL_CTX *complain(struct edge *e, SSL_CTX *context, const char *what, const char *file) {
    unsigned long error = ERR_peek_error();
    const char *reason = ERR_SYSTEM_ERROR(error) ? strerror(ERR_GET_REASON(error)) : ERR_reason_error_string(error);
    snprintf(e->tls.error, sizeof e->tls.error, "%s %s: %s", what, file, reason ? reason : "it is of no use");
    ERR_clear_error();
    SSL_CTX_free(context);
    return NULL;
}

/* Whether a certificate is for one of `hosts`, names or addresses: by its alternative names alone, as Go sees it. */
static bool is_for(X509 *certificate, const char *hosts) {
    for (size_t length; *hosts; hosts += length + (hosts[length] == ',')) {
        char host[256];
        length = strcspn(hosts, ",");
        if (length >= sizeof host) continue;
        memcpy(host, hosts, length);
        host[length] = 0;
        int found = X509_check_ip_asc(certificate, host, 0);
        if (found == -2) /* it is no address */
            found = X509_check_host(certificate, host, length,
                                    X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, NULL);
        if (found == 1) return true;
    }
    return false;
}

/* Asked for each certificate of the client's chain, its own at the end. */
static int judge(int well, X509_STORE_CTX *chain) {
    const SSL *ssl = X509_STORE_CTX_get_ex_data(chain, SSL_get_ex_data_X509_STORE_CTX_idx());
    const struct edge *e = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    const char *hosts = e->tls.config.hosts;
    if (!well || X509_STORE_CTX_get_error_depth(chain) || !hosts) return well;
    if (is_for(X509_STORE_CTX_get_current_cert(chain), hosts)) return 1;
    X509_STORE_CTX_set_error(chain, X509_V_ERR_HOSTNAME_MISMATCH);
    return 0;
}

static bool demand_certificates(SSL_CTX *context, const char *ca) {
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(ca);
    if (!names || SSL_CTX_load_verify_file(context, ca) != 1) {
        sk_X509_NAME_pop_free(names, X509_NAME_free);
        return false;
    }
    SSL_CTX_set_client_CA_list(context, names);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, judge);
    return true;
}

static bool refuse_revoked(SSL_CTX *context, const char *crl) {
    X509_STORE *store = SSL_CTX_get_cert_store(context);
    X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
    return lookup && X509_load_crl_file(lookup, crl, X509_FILETYPE_PEM) > 0 &&
           X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
}

/* What the files say now. NULL: e->tls.error has why not. */
static SSL_CTX *load(struct edge *e, const struct edge_tls_config *c) {
    ERR_clear_error();
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context) return complain(e, NULL, "TLS", "");
    SSL_CTX_set_app_data(context, e);
    SSL_CTX_set_min_proto_version(context, c->version_min == 13 ? TLS1_3_VERSION : TLS1_2_VERSION);
    SSL_CTX_set_max_proto_version(context, c->version_max == 12 ? TLS1_2_VERSION : 0);
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                     SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_default_passwd_cb(context, no_password);
    SSL_CTX_set_alpn_select_cb(context, choose, NULL);
    const char *ciphers = c->ciphers ? c->ciphers : "ECDHE+AESGCM:ECDHE+CHACHA20";
    if (SSL_CTX_set_cipher_list(context, ciphers) != 1) return complain(e, context, "ciphers", ciphers);
    if (SSL_CTX_use_certificate_chain_file(context, c->certificate) != 1)
        return complain(e, context, "certificate", c->certificate);
    if (SSL_CTX_use_PrivateKey_file(context, c->key, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(context) != 1)
        return complain(e, context, "key", c->key);
    if (c->ca && !demand_certificates(context, c->ca)) return complain(e, context, "CA", c->ca);
    if (c->crl && !refuse_revoked(context, c->crl)) return complain(e, context, "CRL", c->crl);
    return context;
}

/* ---- the files, and whether they have changed */

static void look(const struct edge_tls_config *c, struct edge_stamp stamps[EDGE_TLS_FILES]) {
    const char *const names[EDGE_TLS_FILES] = {c->certificate, c->key, c->ca, c->crl};
    memset(stamps, 0, EDGE_TLS_FILES * sizeof *stamps);
    for (int i = 0; i < EDGE_TLS_FILES; i++) {
        struct stat found;
        if (!names[i] || stat(names[i], &found)) continue;
        stamps[i] = (struct edge_stamp){found.st_dev, found.st_ino, found.st_size, found.st_ctim.tv_sec,
                                        found.st_ctim.tv_nsec};
    }
}

static bool same(const struct edge_stamp a[EDGE_TLS_FILES], const struct edge_stamp b[EDGE_TLS_FILES]) {
    for (int i = 0; i < EDGE_TLS_FILES; i++)
        if (a[i].device != b[i].device || a[i].inode != b[i].inode || a[i].size != b[i].size ||
            a[i].seconds != b[i].seconds || a[i].nanoseconds != b[i].nanoseconds)
            return false;
    return true;
}

static bool young(const struct edge_stamp stamps[EDGE_TLS_FILES]) {
    int64_t now = time(NULL);
    for (int i = 0; i < EDGE_TLS_FILES; i++)
        if (stamps[i].seconds <= now && now - stamps[i].seconds < YOUNG_SECONDS) return true;
    return false;
}

/* Looked at first and read then: what changes in between is found changed by the next look. */
static bool read_files(struct edge *e, const struct edge_tls_config *c) {
    struct edge_tls *tls = &e->tls;
    struct edge_stamp stamps[EDGE_TLS_FILES];
    look(c, stamps);
    SSL_CTX *context = load(e, c);
    if (!context) return false;
    SSL_CTX_free(tls->context); /* its connections hold it */
    tls->context = context;
    memcpy(tls->stamps, stamps, sizeof stamps);
    tls->young = young(stamps);
    e->stats.tls_loads++;
    return true;
}

static void refresh(struct edge *e) {
    struct edge_stamp stamps[EDGE_TLS_FILES];
    look(&e->tls.config, stamps);
    if (!e->tls.young && same(stamps, e->tls.stamps)) return;
    if (!read_files(e, &e->tls.config)) e->stats.tls_load_failures++;
}

static bool keep_name(struct edge *e, const char **name) {
    if (!*name) return true;
    size_t size = strlen(*name) + 1;
    char *copy = edge_alloc(e, size);
    if (copy) memcpy(copy, *name, size);
    *name = copy;
    return copy;
}

static void drop_names(struct edge *e, struct edge_tls_config *c) {
    edge_release(e, (char *)c->certificate);
    edge_release(e, (char *)c->key);
    edge_release(e, (char *)c->ca);
    edge_release(e, (char *)c->crl);
    edge_release(e, (char *)c->hosts);
    edge_release(e, (char *)c->ciphers);
    memset(c, 0, sizeof *c);
}

int edge_tls(struct edge *e, const struct edge_tls_config *config) {
    struct edge_tls_config copy = *config;
    bool kept = keep_name(e, &copy.certificate);
    kept = keep_name(e, &copy.key) && kept;
    kept = keep_name(e, &copy.ca) && kept;
    kept = keep_name(e, &copy.crl) && kept;
    kept = keep_name(e, &copy.hosts) && kept;
    kept = keep_name(e, &copy.ciphers) && kept;
    if (!kept) snprintf(e->tls.error, sizeof e->tls.error, "TLS: no memory");
    if (!kept || !read_files(e, &copy)) {
        drop_names(e, &copy);
        return -1;
    }
    drop_names(e, &e->tls.config);
    e->tls.config = copy;
    return 0;
}

void edge_tls_free(struct edge *e) {
    drop_names(e, &e->tls.config);
    SSL_CTX_free(e->tls.context);
}

const char *edge_tls_error(const struct edge *e) {
    return e->tls.error;
}

bool edge_tls_begin(struct edge_connection *k) {
    if (!k->edge->tls.context) return false;
    refresh(k->edge);
    k->tls = SSL_new(k->edge->tls.context);
    if (!k->tls) return false;
    SSL_set_accept_state(k->tls);
    return SSL_set_fd(k->tls, k->socket) == 1;
}

void edge_tls_end(struct edge_connection *k) {
    SSL_free(k->tls);
    k->tls = NULL;
}

/* What a result <= 0 means, in the way of recv() and send(): 0 with nothing, or -1 and errno. */
static int64_t outcome(struct edge_connection *k, int result, bool reading) {
    int error = SSL_get_error(k->tls, result), system = errno;
    ERR_clear_error();
    switch (error) {
    case SSL_ERROR_WANT_WRITE:
        if (reading) k->tls_wants_write = true;
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_WANT_READ:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        errno = error == SSL_ERROR_SYSCALL && system && system != EAGAIN && system != EINTR ? system : EPROTO;
        return -1;
    }
}

int edge_tls_handshake(struct edge_connection *k) {
    const unsigned char *protocol;
    unsigned length;
    ERR_clear_error();
    k->tls_wants_write = false;
    int result = SSL_do_handshake(k->tls);
    if (result <= 0) {
        int64_t n = outcome(k, result, true);
        return n < 0 && errno == EAGAIN ? 0 : -1;
    }
    SSL_get0_alpn_selected(k->tls, &protocol, &length);
    k->tls_h2 = length == 2 && !memcmp(protocol, "h2", 2);
    return 1;
}

int64_t edge_tls_read(struct edge_connection *k, uint8_t *bytes, size_t size) {
    ERR_clear_error();
    k->tls_wants_write = false;
    int n = SSL_read(k->tls, bytes, (int)size);
    return n > 0 ? n : outcome(k, n, true);
}

int64_t edge_tls_write(struct edge_connection *k, const uint8_t *bytes, size_t size) {
    ERR_clear_error();
    int n = SSL_write(k->tls, bytes, (int)size);
    if (n > 0) return n;
    int64_t result = outcome(k, n, false);
    if (result == 0) errno = EPIPE;
    return -1;
}

/* The common name of the client's certificate, which was verified. Returns its length; 0: none. */
size_t edge_tls_name(const struct edge_connection *k, char *name, size_t room) {
    X509 *certificate = k->tls && SSL_get_verify_result(k->tls) == X509_V_OK ? SSL_get1_peer_certificate(k->tls) : NULL;
    if (!certificate) return 0;
    int length = X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, (int)room);
    X509_free(certificate);
    return length > 0 ? (size_t)length : 0;
}
