// Command pki makes the keys and certificates of one throw-away API server:
// ca.crt, apiserver.crt, apiserver.key and service-account.key. It stands in
// for openssl, which a machine that runs the tests need not have.
//
//	pki -out DIR -san 127.0.0.1,::1,kubernetes.default.svc
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	out := flag.String("out", "", "existing directory to write to")
	san := flag.String("san", "", "comma-separated addresses and names that the API server is reached by")
	flag.Parse()
	if *out == "" || *san == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*out, strings.Split(*san, ",")); err != nil {
		fmt.Fprintf(os.Stderr, "pki: %v\n", err)
		os.Exit(1)
	}
}

func run(out string, sans []string) error {
	// A day back, for a clock that is set back between two runs.
	from := time.Now().Add(-24 * time.Hour)
	to := from.Add(10 * 365 * 24 * time.Hour)

	caKey, err := newKey()
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "test-ca"},
		NotBefore:             from,
		NotAfter:              to,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if err := writeCertificate(filepath.Join(out, "ca.crt"), ca, ca, caKey, caKey); err != nil {
		return err
	}

	serverKey, err := newKey()
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:    from,
		NotAfter:     to,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range sans {
		if ip := net.ParseIP(name); ip != nil {
			server.IPAddresses = append(server.IPAddresses, ip)
		} else {
			server.DNSNames = append(server.DNSNames, name)
		}
	}
	if err := writeCertificate(filepath.Join(out, "apiserver.crt"), server, ca, serverKey, caKey); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(out, "apiserver.key"), serverKey); err != nil {
		return err
	}

	accountKey, err := newKey()
	if err != nil {
		return err
	}
	return writeKey(filepath.Join(out, "service-account.key"), accountKey)
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func writeCertificate(path string, certificate, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, certificate, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
