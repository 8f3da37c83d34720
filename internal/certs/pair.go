// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	caValidity      = 10 * 365 * 24 * time.Hour
	servingValidity = 365 * 24 * time.Hour
	// clockSkew is how far a replica's clock may run behind the one that
	// made a certificate.
	clockSkew = time.Hour
)

// Bundle is what the Secret holds, all of it PEM.
type Bundle struct {
	// CA holds the trusted certificates, the signing one first.
	CA []byte
	// CAKey signs serving certificates.
	CAKey []byte
	// Cert and Key are served.
	Cert, Key []byte
}

// Renew returns a bundle that is good for the DNS names at the given time for
// at least a third of a serving certificate's life (a year): the old one if it
// still is (changed is then false), else one with a new serving certificate,
// and with a new CA where the old one is unusable or nears its end. A zero
// Bundle gives a new one.
func Renew(old Bundle, dnsNames []string, now time.Time) (fresh Bundle, changed bool, err error) {
	fresh = old
	caCert, caKey, err := parsePair(old.CA, old.CAKey)
	if err != nil || !trusted(caCert) || now.Add(servingValidity).After(caCert.NotAfter) {
		if caCert, caKey, err = newCA(now); err != nil {
			return Bundle{}, false, err
		}
		fresh.CA = append(encode("CERTIFICATE", caCert.Raw), stillValid(old.CA, now)...) // without one that nobody trusts
		if fresh.CAKey, err = encodeKey(caKey); err != nil {
			return Bundle{}, false, err
		}
		changed = true
	}
	if !changed && serves(old, caCert, dnsNames, now) {
		return old, false, nil
	}
	fresh.Cert, fresh.Key, err = newServing(caCert, caKey, dnsNames, now)
	return fresh, true, err
}

// serves tells whether the bundle's serving certificate will do.
func serves(b Bundle, ca *x509.Certificate, dnsNames []string, now time.Time) bool {
	cert, _, err := parsePair(b.Cert, b.Key)
	if err != nil || now.Add(servingValidity/3).After(cert.NotAfter) {
		return false
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, name := range dnsNames {
		if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
			return false
		}
	}
	return true
}

// trusted tells whether clients can trust what the authority signs: it may sign,
// and is as it was when it signed itself. One altered byte in its name, and its
// key still matches, but no certificate leads to it.
func trusted(ca *x509.Certificate) bool {
	return ca.IsCA && ca.BasicConstraintsValid && ca.CheckSignatureFrom(ca) == nil
}

func newCA(now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Causeway webhook CA " + serial.Text(36)},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func newServing(ca *x509.Certificate, caKey *ecdsa.PrivateKey, dnsNames []string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make serving key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: dnsNames[0]},
		DNSNames:     dnsNames,
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(servingValidity),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make serving certificate: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return encode("CERTIFICATE", der), keyPEM, err
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encode("PRIVATE KEY", der), nil
}

// parsePair reads the first certificate and its key.
func parsePair(certPEM, keyPEM []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, errors.New("key is not ECDSA")
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	return cert, key, err
}

// stillValid returns the certificates of a PEM bundle that have not expired and
// can be trusted.
func stillValid(bundle []byte, now time.Time) []byte {
	var out bytes.Buffer
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && now.Before(cert.NotAfter) && trusted(cert) {
			out.Write(encode("CERTIFICATE", cert.Raw))
		}
	}
	return out.Bytes()
}
