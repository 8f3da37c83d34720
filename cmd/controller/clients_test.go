// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// signed returns a certificate for the usage, signed by ca or, if that is nil, by
// itself as an authority.
func signed(t *testing.T, usage x509.ExtKeyUsage, ca *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	parent, parentKey := template, any(key)
	if ca == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		template.ExtKeyUsage, parent, parentKey = []x509.ExtKeyUsage{usage}, ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// Only a client with a certificate of the authorities', and other replicas, get as
// far as a question.
func TestRequireClients(t *testing.T) {
	k := keeper(t)
	if err := k.Sync(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	own, err := k.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	ca, other := signed(t, 0, nil), signed(t, 0, nil)
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	config := tlsConfig(k)
	if err := requireClients(config, file, k); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		cert *tls.Certificate
		good bool
	}{
		{"none", nil, false},
		{"the authority's", signed(t, x509.ExtKeyUsageClientAuth, ca), true},
		{"the authority's for servers", signed(t, x509.ExtKeyUsageServerAuth, ca), false},
		{"another authority's", signed(t, x509.ExtKeyUsageClientAuth, other), false},
		{"another replica's", own, true},
	} {
		here, there := net.Pipe()
		client := &tls.Config{InsecureSkipVerify: true}
		if test.cert != nil {
			client.Certificates = []tls.Certificate{*test.cert}
		}
		go func() {
			conn := tls.Client(here, client)
			_ = conn.Handshake()
			_, _ = conn.Read(make([]byte, 1)) // the server's alert
		}()
		if err := tls.Server(there, config).Handshake(); test.good != (err == nil) {
			t.Errorf("%s: %v, want let in: %t", test.name, err, test.good)
		}
		here.Close()
		there.Close()
	}
	if err := requireClients(tlsConfig(k), filepath.Join(t.TempDir(), "absent"), k); err == nil {
		t.Error("an absent file is fine")
	}
}
