/* TLS: OpenSSL over the connection's own socket. Version 1.2 or newer, ciphers that HTTP/2 permits, ALPN.
 *
 * There is no resumption of sessions: a client whose certificate was revoked, or whose CA was changed, is judged anew
 * each time. Certificates are read when edge_tls() is called; what is open goes on with what it has. */
#include "edge_inside.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

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

static int complain(struct edge *e, SSL_CTX *tls, const char *what, const char *file) {
    char detail[256] = "";
    unsigned long error = ERR_peek_last_error();
    if (error) ERR_error_string_n(error, detail, sizeof detail);
    snprintf(e->tls_error, sizeof e->tls_error, "%s %s: %s", what, file ? file : "", detail);
    ERR_clear_error();
    SSL_CTX_free(tls);
    return -1;
}

int edge_tls(struct edge *e, const char *certificate, const char *key, const char *ca, const char *crl) {
    ERR_clear_error();
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    if (!tls) return complain(e, NULL, "no TLS", NULL);
    SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION);
    SSL_CTX_set_options(tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(tls, 0);
    SSL_CTX_set_default_passwd_cb(tls, no_password);
    SSL_CTX_set_alpn_select_cb(tls, choose, NULL);
    if (!SSL_CTX_set_cipher_list(tls, "ECDHE+AESGCM:ECDHE+CHACHA20")) return complain(e, tls, "ciphers", NULL);
    if (SSL_CTX_use_certificate_chain_file(tls, certificate) != 1) return complain(e, tls, "certificate", certificate);
    if (SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) return complain(e, tls, "key", key);
    if (SSL_CTX_check_private_key(tls) != 1) return complain(e, tls, "key", key);
    if (ca) {
        STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(ca);
        if (!names || SSL_CTX_load_verify_file(tls, ca) != 1) {
            sk_X509_NAME_pop_free(names, X509_NAME_free);
            return complain(e, tls, "CA", ca);
        }
        SSL_CTX_set_client_CA_list(tls, names);
        SSL_CTX_set_verify(tls, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    }
    if (crl) {
        X509_STORE *store = SSL_CTX_get_cert_store(tls);
        X509_LOOKUP *lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
        if (!lookup || X509_load_crl_file(lookup, crl, X509_FILETYPE_PEM) <= 0) return complain(e, tls, "CRL", crl);
        X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK);
    }
    SSL_CTX_free(e->tls);
    e->tls = tls;
    return 0;
}

const char *edge_tls_error(const struct edge *e) {
    return e->tls_error;
}

bool edge_tls_begin(struct edge_connection *k) {
    if (!k->edge->tls) return false;
    k->tls = SSL_new(k->edge->tls);
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
