// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Peers says how the replicas of the controller reach each other's webhooks.
type Peers struct {
	// Address is host:port of this replica's webhooks as the others reach it.
	// Empty: there are no others.
	Address string
	// ServerName is the name in the webhooks' certificate. Empty: that of the
	// Service in front of them.
	ServerName string
	// Certificate is shown to the others, which may ask for one; nil for none.
	Certificate func() (*tls.Certificate, error)
	// CA gives the certificates that sign it, as PEM. Nil: from the Secret
	// v1alpha1.WebhookSecret.
	CA func(ctx context.Context) ([]byte, error)
}

const (
	forwardedHeader = "Causeway-Forwarded"
	maxReview       = 8 << 20
)

// errNotHolder is the answer of a replica that was asked to grant and may not.
var errNotHolder = errors.New("this replica may not grant addresses and ports now")

// peer forwards admission requests to the replica that may grant.
type peer struct {
	client *http.Client
}

func newPeer(p Peers, namespace string, reader client.Reader) *peer {
	if p.ServerName == "" {
		p.ServerName = "webhook-service." + namespace + ".svc"
	}
	if p.CA == nil {
		p.CA = func(ctx context.Context) ([]byte, error) {
			var secret corev1.Secret
			if err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: v1alpha1.WebhookSecret}, &secret); err != nil {
				return nil, fmt.Errorf("read webhook certificate authority: %w", err)
			}
			return secret.Data["ca.crt"], nil
		}
	}
	return &peer{client: &http.Client{Transport: &http.Transport{
		DialTLSContext:      dialer(p),
		MaxIdleConnsPerHost: 32,
		IdleConnTimeout:     time.Minute,
	}}}
}

// dialer trusts what the authority signs at the time of dialling, so that a new
// authority needs no restart.
func dialer(p Peers) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		pem, err := p.CA(ctx)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errors.New("the webhook certificate authority is empty")
		}
		d := tls.Dialer{
			NetDialer: &net.Dialer{Timeout: time.Second},
			Config:    &tls.Config{RootCAs: roots, ServerName: p.ServerName, MinVersion: tls.VersionTLS13},
		}
		if p.Certificate != nil {
			d.Config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.Certificate() }
		}
		return d.DialContext(ctx, network, address)
	}
}

// forward has the replica at address answer a request that came in at path.
func (p *peer) forward(ctx context.Context, address, path string, req admission.Request) (admission.Response, error) {
	review := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"},
		Request:  &req.AdmissionRequest,
	}
	body, err := json.Marshal(review)
	if err != nil {
		return admission.Response{}, fmt.Errorf("write admission review: %w", err)
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return admission.Response{}, fmt.Errorf("forward to %s: %w", address, err)
	}
	post.Header.Set("Content-Type", "application/json")
	post.Header.Set(forwardedHeader, "1")
	answer, err := p.client.Do(post)
	if err != nil {
		return admission.Response{}, fmt.Errorf("forward to %s: %w", address, err)
	}
	defer answer.Body.Close()
	var out admissionv1.AdmissionReview
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxReview)).Decode(&out); err != nil {
		return admission.Response{}, fmt.Errorf("read answer of %s with status %s: %w", address, answer.Status, err)
	}
	if out.Response == nil {
		return admission.Response{}, fmt.Errorf("read answer of %s with status %s: it has no response", address, answer.Status)
	}
	if out.Response.Result != nil && out.Response.Result.Message == errNotHolder.Error() {
		return admission.Response{}, errNotHolder
	}
	return admission.Response{AdmissionResponse: *out.Response}, nil
}
