/* A certificate that signs itself, for --auto-tls: it keeps what is said secret from who listens, and proves nothing. */
#include "edge_inside.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <string.h>

static bool extend(X509 *x, int what, const char *value) {
    X509V3_CTX context;
    X509V3_set_ctx_nodb(&context);
    X509V3_set_ctx(&context, x, x, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, what, value);
    bool added = extension && X509_add_ext(x, extension, -1);
    X509_EXTENSION_free(extension);
    return added;
}

static bool number(X509 *x) {
    uint64_t serial;
    return RAND_bytes((unsigned char *)&serial, sizeof serial) == 1 &&
           ASN1_INTEGER_set_uint64(X509_get_serialNumber(x), serial >> 1 | 1);
}

static bool fill(X509 *x, EVP_PKEY *key, const char *hosts, int days) {
    X509_NAME *name = X509_get_subject_name(x);
    return X509_set_version(x, X509_VERSION_3) && number(x) && X509_gmtime_adj(X509_getm_notBefore(x), 0) &&
           X509_time_adj_ex(X509_getm_notAfter(x), days, 0, NULL) && X509_set_pubkey(x, key) &&
           X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC, (const unsigned char *)"kvorum", -1, -1, 0) &&
           X509_set_issuer_name(x, name) && extend(x, NID_basic_constraints, "critical,CA:FALSE") &&
           extend(x, NID_key_usage, "critical,digitalSignature,keyEncipherment") &&
           extend(x, NID_ext_key_usage, "serverAuth") && extend(x, NID_subject_alt_name, hosts) &&
           X509_sign(x, key, EVP_sha256());
}

/* All of it, and a zero behind. false: there is no room. */
static bool take(BIO *from, char *to, size_t room) {
    int length = BIO_read(from, to, (int)room - 1);
    if (length <= 0 || BIO_pending(from)) return false;
    to[length] = 0;
    return true;
}

int edge_tls_self_signed(const char *hosts, int days, char *certificate, char *key, size_t room) {
    EVP_PKEY *pair = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    BIO *pem = BIO_new(BIO_s_mem());
    bool made = pair && x && pem && fill(x, pair, hosts, days) && PEM_write_bio_X509(pem, x) &&
                take(pem, certificate, room) && PEM_write_bio_PrivateKey(pem, pair, NULL, NULL, 0, NULL, NULL) &&
                take(pem, key, room);
    BIO_free(pem);
    X509_free(x);
    EVP_PKEY_free(pair);
    return made ? 0 : -1;
}
